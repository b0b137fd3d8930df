"""The verbs `raypft cluster …` and `raypft submit …`: options in, lines out; what they do is in raypft/cluster/."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from raypft.cli.progress import JobProgress
from raypft.errors import UserError

cluster_app = typer.Typer(
    no_args_is_help=True, help="Cluster definitions: validate, render, check, start, look at, end."
)
File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A cluster definition, its file or the name of a shipped one, e.g. local."),
]


@cluster_app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Definitions, launcher files or manifests.")],
) -> None:
    """All that can be wrong with cluster files, without a cluster: keys, rules, Ray's own validator, security."""
    from raypft.cluster.check.validate import validate as wrong_with  # noqa: PLC0415

    bad = False
    for path in files:
        lines = wrong_with(path)
        bad |= bool(lines)
        for line in lines:
            print(line, file=sys.stderr)
        if not lines:
            print(f"{path}: valid")
    raise typer.Exit(2 if bad else 0)


@cluster_app.command()
def render(
    file: File,
    to: Annotated[
        str | None,
        typer.Option(
            help="ray-up, autoscaler, rayjob, raycluster, raycronjob, kueue, pvc or networkpolicy; all by default."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("cluster/rendered"),
) -> None:
    """Write the files for `ray up` or KubeRay."""
    from raypft.cluster.definition import load  # noqa: PLC0415
    from raypft.cluster.render import targets  # noqa: PLC0415

    definition = load(file)
    if not targets.TARGETS[definition.kind]:
        raise UserError(
            f"{file}: nothing is rendered from kind {definition.kind}; start it with raypft cluster up {file}"
        )
    for path in targets.write(definition, file.stem, out, to):
        print(path)


@cluster_app.command()
def up(file: File) -> None:
    """Start a cluster of kind local or fake on this machine and wait until it takes jobs."""
    from raypft.cluster.definition import load  # noqa: PLC0415
    from raypft.cluster.up import up as start  # noqa: PLC0415

    definition = load(file)
    server = start(definition)
    print(
        f"{definition.name} is up at {server.address.url}, Ray {server.ray_version}; "
        f"raypft submit --cluster {file} -- VERB; raypft cluster down {file}"
    )


@cluster_app.command()
def down(file: File) -> None:
    """End what `up` started, and nothing else."""
    from raypft.cluster.definition import load  # noqa: PLC0415
    from raypft.cluster.up import down as end  # noqa: PLC0415

    definition = load(file)
    count = end(definition)
    print(f"{definition.name}: {f'ended {count} processes' if count else 'nothing was up'}")


Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="HOST:PORT", help="Ray's own address; by default a local or fake definition's."),
]


@cluster_app.command(name="status")
def cluster_status(file: File, ray: Ray = None) -> None:
    """Nodes, starts, and what waits, each with the reason."""
    from raypft.cluster import nodes  # noqa: PLC0415
    from raypft.cluster.definition import load  # noqa: PLC0415
    from raypft.scale.resources import shapes_of  # noqa: PLC0415

    definition = load(file)
    for line in nodes.status_lines(
        nodes.cluster_status(_ray_address(definition, ray)), shapes_of(definition.pools), str(file)
    ):
        print(line)


@cluster_app.command()
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The beginning of a node's id, as status shows it.")],
    file: Annotated[Path, typer.Option("--cluster", metavar="FILE", help="Definition of the cluster.")],
    deadline: Annotated[int, typer.Option(help="Seconds until the node goes.")] = 120,
    ray: Ray = None,
) -> None:
    """Tell a node that it will go, as a cloud tells a spot machine: a rehearsal."""
    from raypft.cluster import nodes  # noqa: PLC0415
    from raypft.cluster.definition import load  # noqa: PLC0415

    print(f"{nodes.drain(_ray_address(load(file), ray), node, deadline)} goes within {deadline} s")


def _ray_address(definition: Any, given: str | None) -> str:
    if given or hasattr(definition, "dashboard_port"):
        return given or f"127.0.0.1:{definition.port}"
    raise UserError(
        f"cluster: where Ray of {definition.name} is can't be told from kind {definition.kind}; give --ray HOST:PORT"
    )


@cluster_app.command()
def check(
    file: File,
    jobs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE|FILE... KEY=VALUE...]", help="A job that must fit the cluster."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="URL of the job server.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only whether the job fits the definition; ask no cluster.")
    ] = False,
    timeout: Annotated[int, typer.Option(help="Seconds a worker node may take to come.")] = 600,
    insecure: Annotated[bool, typer.Option("--insecure", help="Send the token over http to another machine.")] = False,
) -> None:
    """Before money is spent: the job fits, token and versions are right, a worker can write to the storage."""
    from raypft.cluster.check.preflight import fit_lines, server_lines  # noqa: PLC0415
    from raypft.cluster.client import JobServer, find_address  # noqa: PLC0415
    from raypft.cluster.definition import load  # noqa: PLC0415

    definition = load(file)
    for line in fit_lines(jobs or [], definition, str(file)):
        print(line)
    if not offline:
        for line in server_lines(JobServer(find_address(address, definition), insecure), definition, timeout):
            print(line)


Address_ = Annotated[str | None, typer.Option("--address", help="URL of the job server, e.g. http://127.0.0.1:8265.")]
Cluster = Annotated[
    Path | None,
    typer.Option(
        "--cluster", metavar="FILE", help="Definition of the cluster: its address, and whether the job fits it."
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Send the token over http to another machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
JobId = Annotated[str, typer.Argument(metavar="ID")]
OnInterrupt = Annotated[
    Literal["stop", "detach"], typer.Option(help="What a first Ctrl-C or SIGTERM does; a second always leaves the job.")
]


class _RunFirst(TyperGroup):
    """`raypft submit … -- tune FILE` is `raypft submit run … -- tune FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Words that name no verb of this group are what to run."""
        named = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if named else ["run", *args])


submit_app = typer.Typer(
    no_args_is_help=True,
    cls=_RunFirst,
    help="Run a raypft command as a job on a cluster: raypft submit [OPTIONS] -- tune FILE",
)


def _server(address: str | None, cluster: Path | None, insecure: bool) -> Any:
    from raypft.cluster.client import JobServer, find_address  # noqa: PLC0415
    from raypft.cluster.definition import load  # noqa: PLC0415

    return JobServer(find_address(address, load(cluster) if cluster else None), insecure)


@submit_app.command(name="run")
def submit_run(
    words: Annotated[
        list[str],
        typer.Argument(metavar="-- VERB...", help="A raypft command, e.g. -- tune FILE; with --raw any command."),
    ],
    address: Address_ = None,
    cluster: Cluster = None,
    job_id: Annotated[
        str | None,
        typer.Option("--id", help="Name of the job; the same name, command and package again follows the first."),
    ] = None,
    env: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="Environment of the job.")] = [],  # noqa: B006
    metadata: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="Kept with the job.")] = [],  # noqa: B006
    working_dir: Annotated[
        Path, typer.Option(help="Folder that is packaged and sent: what git knows or would know.")
    ] = Path(),
    package: Annotated[
        bool,
        typer.Option(help="Send the folder; not needed where raypft is in the image and the command names no files."),
    ] = True,
    package_uri: Annotated[
        str | None,
        typer.Option(help="A zip file that nodes can read, in place of the folder: s3://…, gs://…, https://…"),
    ] = None,
    gpus: Annotated[float, typer.Option(help="GPUs that the command itself takes; its workers ask for their own.")] = 0,
    stop_wait: Annotated[int, typer.Option(help="Seconds between SIGTERM and SIGKILL when it is stopped.")] = 60,
    wait: Annotated[bool, typer.Option(help="Show its output and return its exit code.")] = True,
    on_interrupt: OnInterrupt = "stop",
    raw: Annotated[bool, typer.Option("--raw", help="The words are a whole command, not a raypft verb.")] = False,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Run a raypft command on a cluster (the default verb: raypft submit -- tune FILE)."""
    from raypft.cluster import submit as jobs  # noqa: PLC0415
    from raypft.cluster.feasible import refuse_impossible  # noqa: PLC0415

    if cluster and not raw:
        refuse_impossible(words, cluster)
    order = jobs.Order(
        words,
        raw,
        job_id,
        _pairs(env, "--env"),
        working_dir if package else None,
        package_uri,
        _pairs(metadata, "--metadata"),
        stop_wait,
        gpus,
    )
    tell, server = JobProgress(as_json), _server(address, cluster, insecure)
    submitted = jobs.submit(server, order, tell)
    raise typer.Exit(jobs.follow(server, submitted, tell, on_interrupt) if wait else 0)


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    for text in texts:
        if "=" not in text or text.startswith("="):
            raise UserError(f'{option} "{text}": expected KEY=VALUE')
    return dict(text.split("=", 1) for text in texts)


@submit_app.command()
def attach(
    job_id: JobId,
    address: Address_ = None,
    cluster: Cluster = None,
    on_interrupt: OnInterrupt = "detach",
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Show a job's output from its beginning until it ends; exit with its code."""
    from raypft.cluster import submit as jobs  # noqa: PLC0415

    raise typer.Exit(jobs.follow(_server(address, cluster, insecure), job_id, JobProgress(as_json), on_interrupt))


@submit_app.command()
def status(
    job_id: JobId,
    address: Address_ = None,
    cluster: Cluster = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """A job's status, exit code and message."""
    job = _server(address, cluster, insecure).job(job_id)
    if as_json:
        print(json.dumps(job))
    else:
        code = "" if job.get("driver_exit_code") is None else f", exit code {job['driver_exit_code']}"
        print(f"{job_id} {job['status']}{code}: {' '.join((job.get('message') or '').split())[:300]}")


@submit_app.command()
def logs(job_id: JobId, address: Address_ = None, cluster: Cluster = None, insecure: Insecure = False) -> None:
    """A job's output so far."""
    server = _server(address, cluster, insecure)
    server.job(job_id)
    print(server.log(job_id), end="")


@submit_app.command(name="stop")
def stop_(job_id: JobId, address: Address_ = None, cluster: Cluster = None, insecure: Insecure = False) -> None:
    """Stop a job, whether it runs or waits for nodes."""
    from raypft.cluster import submit as jobs  # noqa: PLC0415

    server = _server(address, cluster, insecure)
    asyncio.run(jobs.stop(server, job_id))
    print(f"{job_id} {server.job(job_id)['status']}")


@submit_app.command(name="list")
def list_(
    address: Address_ = None, cluster: Cluster = None, insecure: Insecure = False, as_json: AsJson = False
) -> None:
    """The jobs of a cluster, oldest first."""
    for job in _server(address, cluster, insecure).jobs():
        print(json.dumps(job) if as_json else f"{job['submission_id']} {job['status']} {job['entrypoint']}")
