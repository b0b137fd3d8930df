"""A command as other programs would have it, told before it is taken for something else."""

from __future__ import annotations

from collections.abc import Sequence

from raypft.config.job import Job
from raypft.errors import UserError

OF_JOBS = ("run", "check", "show", "tune", "plan")
"""Commands whose words are names and key=value."""
MEANT = {"train": "run", "fit": "run", "finetune": "run", "sweep": "tune", "search": "tune", "eval": "predict"}
"""What other programs call some commands, to ours."""
OPTIONS = ("fresh", "no-fresh", "json", "row", "help")


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
