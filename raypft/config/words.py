"""The words of a command that runs jobs: recipes and files, overrides for all of them, overrides for one of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from raypft.backbones.aliases import ALIASES
from raypft.config.job import Job
from raypft.config.load import recipe_names
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.tasks.load import task_names


def split_words(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Recipes or files, each with its overrides: those of all, and as `lora.train.lr=1e-3` those of the one called so.

    Raises:
        UserError: no recipe and no file.
    """
    names = [word for word in words if "=" not in word and not word.startswith("-")]
    if not names:
        raise UserError(
            "job: name a recipe or a job file, e.g. raypft run gnnavi_gcn task=sst2 backbone=smollm2-135m; "
            "see raypft list recipes"
        )
    for name in names:
        _check_recipe(name)
    called = {Path(name).stem for name in names} - set(Job.model_fields)
    jobs = []
    for name in names:
        overrides = []
        for word in words:
            owner = word.partition("=")[0].partition(".")[0]
            if "=" in word and owner not in called:
                overrides.append(word)
            elif "=" in word and owner == Path(name).stem:
                overrides.append(word.removeprefix(f"{owner}."))
        jobs.append((name, overrides))
    return jobs


def _check_recipe(name: str) -> None:
    """Raise a UserError where a word stands for a recipe that names something else there is."""
    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        return
    for key, names in (("task", task_names()), ("method", METHODS.names()), ("backbone", list(ALIASES))):
        if name in names:
            raise UserError(f"job: {name} is a {key}; name a recipe beside it, e.g. raypft run profit {key}={name}")
    if os.path.isfile(name):
        raise UserError(f"job: {name} is no job, which is a YAML; raypft init {name} writes a task from a file of data")
