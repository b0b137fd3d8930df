"""The command line: init, doctor, check, show, run, plan, tune, watch, report, runs, analyse, predict, export,
contract, list, submit, cluster.

Exit codes: 0 done, 2 something the user can mend (one line says what), 1 a fault of raypft, 130 ended by Ctrl-C and 143
by SIGTERM, where the same command goes on; those of `submit`: cluster/README.md.
"""

from __future__ import annotations

import atexit
import gc
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from raypft._version import __version__
from raypft.cli import completion
from raypft.cli.analyse import analyse
from raypft.cli.cluster import cluster_app, submit_app
from raypft.cli.doctor import doctor
from raypft.cli.init import init
from raypft.cli.jobs import Names, asked_jobs, check, load_jobs
from raypft.cli.progress import CampaignProgress, OneLine, RunProgress
from raypft.cli.report import report
from raypft.cli.runs import runs
from raypft.cli.shown import Json, console, print_found, print_table
from raypft.cli.terminal import check_words, quiet, say_interrupted, speak_anyhow, terminable
from raypft.cli.usage import Commands, check_blanks
from raypft.cli.using import Moved, Run, Seed, moved, predict
from raypft.cli.watch import watch
from raypft.errors import UserError, visible
from raypft.progress import heard
from raypft.storage import one_line_of_disk, path_of

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cluster_app, name="cluster")
app.add_typer(submit_app, name="submit")


def _version(asked: bool) -> None:
    if asked:
        print(f"raypft {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Prompt-based fine-tuning of language models, distributed on Ray."""


@app.command()
def run(
    words: Names,
    fresh: Annotated[bool, typer.Option(help="Start over where results or states exist.")] = False,
    as_json: Json = False,
) -> None:
    """Train and test jobs: every seed, then the table of mean and std."""
    jobs = load_jobs(words)
    from raypft.runs.prepare import prepare  # noqa: PLC0415  (torch is loaded only where it is needed)
    from raypft.runs.table import check_comparable, interrupted, run_table  # noqa: PLC0415
    from raypft.scale.run import run_jobs  # noqa: PLC0415

    prepared = [prepare(job) for job in jobs]
    check_comparable(prepared)
    labels = {ready.folder.name: ready.job.recipe for ready in prepared} if len(prepared) > 1 else {}
    for ready in prepared if not as_json else ():
        line = f" {Path(ready.job.task).stem}, {len(ready.job.seeds)} seeds, in {ready.folder}"
        console.print(Text.assemble((ready.job.recipe, "bold"), line), highlight=False, soft_wrap=True)
    try:
        with RunProgress(console, as_json, labels) as tell:
            results = run_jobs(prepared, tell, fresh)
    except KeyboardInterrupt as stop:
        table, line = interrupted(prepared)
        if table and not as_json:
            print_table(table)
        say_interrupted(line, stop)
    folders = [ready.folder for ready in prepared]
    if not as_json:
        print_table(run_table(folders))
        print(f"\nnext: raypft report {shlex.join(map(str, folders))} --out report")
        return
    for folder, of_job in zip(folders, results, strict=True):
        for result in of_job:
            result.pop("losses")
            print(json.dumps({"event": "finished", "folder": str(folder), **result}), flush=True)


Campaigns = Annotated[
    list[str],
    typer.Argument(
        metavar="CAMPAIGN|FILE [scale=NAME] [KEY=VALUE...]",
        autocompletion=completion.campaigns,
        help="A campaign of tune_spaces/ or its file, then overrides of its defaults.",
    ),
]


@app.command()
def tune(
    words: Campaigns,
    fresh: Annotated[bool, typer.Option(help="Start over where results or states exist.")] = False,
    as_json: Json = False,
) -> None:
    """Run a campaign, a paper's table or a search, on Ray Tune; finished cells are reused. Then its tables."""
    from raypft.campaigns.load import load_campaign, words_of  # noqa: PLC0415
    from raypft.campaigns.state import CampaignState  # noqa: PLC0415
    from raypft.report.campaign import write_tables  # noqa: PLC0415
    from raypft.scale.tune.run import run_campaign  # noqa: PLC0415  (ray is loaded only where it is used)

    campaign = load_campaign(*words_of(words))
    if not as_json:
        line = f" {campaign.about}\nin {campaign.folder}"
        console.print(Text.assemble((campaign.name, "bold"), line), highlight=False, soft_wrap=True)
    try:
        with CampaignProgress(console, as_json) as tell:
            rows = run_campaign(campaign, tell, fresh)
    except KeyboardInterrupt as stop:
        rows = CampaignState(campaign).rows()
        done = sum(row["status"] == "finished" for row in rows)
        if done and not as_json:
            print(f"partial, {done} of {len(rows)} cells:")
            print(write_tables(campaign, rows, campaign.folder).read_text(encoding="utf-8"), end="")
        say_interrupted(f"{done} of {len(rows)} cells are finished, others go on from their last state", stop)
    table = write_tables(campaign, rows, campaign.folder)
    if as_json:
        print(json.dumps({"event": "finished", "folder": str(campaign.folder), "table": str(table)}), flush=True)
    else:
        print(table.read_text(encoding="utf-8"), end="")
        place = shlex.quote(str(campaign.folder))
        print(f"\nnext: raypft report {place} --out {place}/report")


@app.command()
def plan(words: Campaigns, as_json: Json = False) -> None:
    """What a campaign would run and need, before anything starts; exit code 2 where `tune` would refuse it."""
    from raypft.campaigns.load import open_campaign, words_of  # noqa: PLC0415
    from raypft.scale.tune.plan import planned  # noqa: PLC0415

    campaign, where = open_campaign(*words_of(words))
    found = planned(campaign, where)
    print_found(found, as_json)
    if found["refused"]:
        raise UserError("\n".join(found["refused"]))


@app.command()
def show(
    words: Names,
    row: Annotated[str | None, typer.Option(help="Key of the row, language/id; the first test row by default.")] = None,
    as_json: Json = False,
) -> None:
    """One row traced: rendered prompt, tokens with marks, label words and their ids, scores."""
    from raypft.config.load import load_job  # noqa: PLC0415
    from raypft.runs.inspect import traced  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415

    for name, overrides in asked_jobs(words):
        print_found(traced(prepare(load_job(name, overrides)), row), as_json)


@app.command()
def contract(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD|FILE [method.KEY=VALUE...]",
            autocompletion=completion.methods,
            help="A method of the catalogue, a path.py or package.module with one, then keys of it.",
        ),
    ],
    on: Annotated[
        str | None, typer.Option(help="Tiny models, of bert,xlmr,gpt2,llama,t5,mt5; by default all that it works with.")
    ] = None,
    engines: Annotated[
        bool, typer.Option("--engines", help="Also one loss curve over ZeRO stages, with one process and two.")
    ] = False,
) -> None:
    """Check on tiny models what every method promises, a line a promise; exit code 0 or 2."""
    from raypft.contract.run import conclude, kinds_of, method_of, outcomes  # noqa: PLC0415

    method, options = method_of(words)
    seen = []
    for outcome in outcomes(method, kinds_of(method, on.split(",") if on else None), options, engines):
        seen.append(outcome)
        console.print(str(outcome), highlight=False, soft_wrap=True)
    console.print(conclude(method, seen), highlight=False, soft_wrap=True)


@app.command(name="list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="tasks|methods|readouts|analyses|backbones|recipes|matrix|schema",
            autocompletion=completion.catalogues,
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Argument(metavar="[job|task|campaign]", help="Of schema: the kind of file.")
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="The same as `list matrix`.")] = False,
) -> None:
    """What there is; `matrix`: what goes with what; `schema`: the JSON Schema of a kind of file, for editors."""
    from raypft.cli.catalogues import catalogue  # noqa: PLC0415

    if (what is None) != matrix:
        raise UserError("list: name one catalogue, e.g. raypft list methods, or raypft list --matrix")
    for line in catalogue(what or "matrix", kind):
        print(line)


app.command()(init)
app.command()(doctor)
app.command()(check)
app.command()(report)
app.command()(runs)
app.command()(watch)
app.command()(analyse)
app.command()(predict)


@app.command()
def export(
    run: Run,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", parser=path_of, help="A new folder on this machine.")
    ] = None,
    words: Moved = None,
    seed: Seed = None,
    to_hub: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="OWNER/NAME",
            help="Also a new, private repository of the Hugging Face hub; the token is HF_TOKEN's or hf auth login's.",
        ),
    ] = None,
) -> None:
    """Write what a run trained as a folder that transformers, peft or safetensors load, with a model card."""
    if to_hub is not None and "=" in str(folder):  # DIR was left out
        folder, words = None, [str(folder), *(words or [])]
    if folder is None and to_hub is None:
        raise UserError(
            "export: found neither DIR nor --push; expected a new folder, or OWNER/NAME on the hub, or both"
        )
    from raypft.hub import check_upload  # noqa: PLC0415
    from raypft.runs import export as exports  # noqa: PLC0415
    from raypft.runs.predict import load_trained  # noqa: PLC0415

    if to_hub is not None:
        check_upload(to_hub)
        page = exports.push(load_trained(run, seed, moved(words)), to_hub, folder)
        console.print(f"pushed to {page}; a new repository is private", highlight=False, soft_wrap=True)
    elif folder is not None:
        exports.export(load_trained(run, seed, moved(words)), folder)
    if folder is not None:
        console.print(f"written to {folder}; {folder}/README.md says how to load it", highlight=False, soft_wrap=True)


def main(command: Callable[[], None] = app) -> None:
    """Entry point: one line, or one a mistake, and exit code 2 for what the user can mend."""
    # what is imported lives to the end: to look for garbage in it, again and again, is a quarter of a short command
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    quiet()
    speak_anyhow()
    try:
        check_words()
        check_blanks(sys.argv[1:])
        with terminable(), one_line_of_disk(), heard(OneLine(sys.stderr)):
            command()
    except UserError as error:
        for line in str(error).split("\n"):
            print(f"raypft: {visible(line)}", file=sys.stderr)
        raise SystemExit(error.code) from None


if __name__ == "__main__":
    main()
