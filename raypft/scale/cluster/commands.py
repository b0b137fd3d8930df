"""The verbs `raypft cluster …` and `raypft submit …`: options in, lines out; what they do is in the files beside this one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from raypft.errors import UserError

cluster_app = typer.Typer(no_args_is_help=True, help="Cluster definitions: validate, render, check, start, look at, end.")
submit_app = typer.Typer(no_args_is_help=True, help="Run a raypft command as a job on a cluster.")
File = Annotated[Path, typer.Argument(metavar="FILE", help="A cluster definition, e.g. cluster/local.yaml.")]


@cluster_app.command()
def validate(files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Definitions, launcher files or manifests.")]) -> None:
    """All that can be wrong with cluster files, without a cluster: keys, rules, Ray's own validator, security."""
    from raypft.scale.cluster.validate import validate as wrong_with  # noqa: PLC0415

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
    to: Annotated[str | None, typer.Option(help="ray-up, autoscaler, rayjob, raycluster, raycronjob, kueue, pvc or networkpolicy; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("cluster/rendered"),
) -> None:
    """Write the files for `ray up` or KubeRay."""
    from raypft.scale.cluster import render as files  # noqa: PLC0415
    from raypft.scale.cluster.definition import load  # noqa: PLC0415

    definition = load(file)
    if not files.TARGETS[definition.kind]:
        raise UserError(f"{file}: nothing is rendered from kind {definition.kind}; start it with raypft cluster up {file}")
    for path in files.write(definition, file.stem, out, to):
        print(path)
