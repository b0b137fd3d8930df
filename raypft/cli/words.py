"""The words of a command that runs jobs: recipes and files, overrides for all of them, overrides for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raypft.config.job import Job
from raypft.errors import UserError

OF_JOBS = ("run", "check", "show", "tune", "plan")
"""Commands whose words are names and key=value."""
MEANT = {"train": "run", "fit": "run", "finetune": "run", "sweep": "tune", "search": "tune", "eval": "predict"}
"""What other programs call some commands, to ours."""
OPTIONS = ("fresh", "no-fresh", "json", "row", "help")


def split_words(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Recipes or files, each with its overrides: those of all, and as `lora.train.lr=1e-3` those of the one called so.

    Raises:
        UserError: no recipe and no file.
    """
    names = [word for word in words if "=" not in word]
    if not names:
        raise UserError(
            "job: name a recipe or a job file, e.g. raypft run gnnavi_gcn task=sst2 backbone=smollm2-135m; "
            "see raypft list recipes"
        )
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


def check_command(words: Sequence[str]) -> None:
    """Raise a UserError where a command is written as other programs would have it: `train`, `--task sst2`, or blanks
    around =.

    Args:
        words: all that follows the program's name.
    """
    if words and words[0] in MEANT:
        raise UserError(f'command: "{words[0]}" is unknown; did you mean "raypft {MEANT[words[0]]}"? see raypft --help')
    if not words or words[0] not in OF_JOBS:
        return
    for number, word in enumerate(words):
        after = words[number + 1] if number + 1 < len(words) else ""
        key, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and key.partition(".")[0] in Job.model_fields and key not in OPTIONS:
            shown = value or (after if after and not after.startswith("-") else "…")
            raise UserError(f"command: found the option --{key}; keys have no dashes, write {key}={shown}")
        if word.startswith("=") and number > 1:
            meant = f"{words[number - 1]}={word[1:] or after}"
            raise UserError(f'command: found a blank before "="; write {meant} as one word')
        if word.endswith("=") and after and "=" not in after and not after.startswith("-"):
            raise UserError(f'command: found a blank after "{word}"; write {word}{after} as one word')
