"""What a command asks of a cluster, held against its definition before anything is started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from raypft.campaigns.load import open_campaign, words_of
from raypft.cluster.definition import load
from raypft.config.job import Resources
from raypft.config.load import load_resources
from raypft.config.words import split_words
from raypft.scale.resources import Bundle, Shape, check_possible, job_bundles, logical_cpus, shapes_of, trial_bundles


def refuse_impossible(words: Sequence[str], file: Path) -> None:
    """Refuse a `run` or `tune` command of which a part fits no cluster of the definition; other verbs are let through.

    Raises:
        Infeasible: with what is missing and what would fit.
        UserError: the job's resources or the definition are not valid.
    """
    if words and words[0] in ("run", "tune"):
        shapes = shapes_of(load(file).pools)
        for _, bundles in asked_for(words, shapes):
            check_possible(bundles, shapes, str(file))


def asked_for(words: Sequence[str], shapes: Sequence[Shape]) -> Iterator[tuple[str, list[Bundle]]]:
    """What jobs or trials ask for at once, by name: of `[run] RECIPE... key=value...` or `tune CAMPAIGN key=value...`.

    Equal trials of a campaign come once.

    Args:
        shapes: of the cluster, whose CPUs they share.

    Raises:
        UserError: the jobs or the campaign are not valid.
    """
    logical = logical_cpus(shapes)
    if words[:1] == ["tune"]:
        told: list[Resources] = []
        for place in open_campaign(*words_of(words[1:]))[0].table_cells():
            resources = place.resources()
            if resources not in told:
                told.append(resources)
                yield place.label, trial_bundles(resources, logical)
        return
    of_jobs = words[1:] if words[:1] == ["run"] else words
    for name, overrides in split_words(of_jobs) if of_jobs else ():
        yield name, job_bundles(load_resources(name, overrides), logical)
