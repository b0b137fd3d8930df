"""The jobs that a command's words name, and `raypft check`."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Annotated

import typer

from raypft.cli import completion
from raypft.cli.shown import Json, print_found
from raypft.config.words import split_words
from raypft.errors import UserError

if TYPE_CHECKING:
    from raypft.config.resolved import ResolvedJob

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE|FILE... [KEY=VALUE...]",
        autocompletion=completion.jobs,
        help="Recipes or job files, then overrides such as task=sst2 shots=5 train.lr=1e-4; lora.train.lr=1e-3 is for "
        "that recipe alone.",
    ),
]


def asked_jobs(words: list[str]) -> list[tuple[str, list[str]]]:
    """Recipes or files and their overrides, see `split_words`.

    Raises:
        UserError: none, or a campaign is named.
    """
    from raypft.campaigns.load import names_campaign  # noqa: PLC0415  (loaded only where jobs are asked for)
    from raypft.config.load import recipe_names  # noqa: PLC0415

    asked, scaled = split_words(words), any(word.startswith("scale=") for word in words)
    for name, _ in asked:
        if names_campaign(name) and (scaled or name not in recipe_names()):  # two have a recipe's name
            raise UserError(
                f"job: {name} is a campaign; raypft plan {name} says what it needs, raypft tune {name} runs it"
            )
    return asked


def load_jobs(words: list[str]) -> list[ResolvedJob]:
    """The jobs of a command; whether the machine or cluster that they name is there is told first."""
    from raypft.config.load import load_job, load_resources  # noqa: PLC0415  (torch is loaded only where it is needed)
    from raypft.scale.machine import check_named  # noqa: PLC0415

    asked = asked_jobs(words)
    for name, overrides in asked:
        check_named(load_resources(name, overrides))
    return [load_job(name, overrides) for name, overrides in asked]


def check(words: Names, as_json: Json = False) -> None:
    """Everything that can be known before compute is spent; exit code 0 or 2."""
    gc.set_threshold(1_000_000)  # nothing is trained, what could pile up is small: a twelfth of the command
    jobs = load_jobs(words)
    from raypft.runs.inspect import checked  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415
    from raypft.runs.run import check_distinct  # noqa: PLC0415
    from raypft.runs.table import check_comparable  # noqa: PLC0415
    from raypft.scale.machine import check_machine  # noqa: PLC0415

    prepared, nodes = [], []
    for job in jobs:
        nodes.append(check_machine(job.job.resources))
        prepared.append(prepare(job))
        check_distinct(prepared)
    check_comparable(prepared)
    for ready, there in zip(prepared, nodes, strict=True):
        print_found(checked(ready, there), as_json)
