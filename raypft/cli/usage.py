"""What a command does not take, as one line: an unknown verb, a job's key that is written as an option, blanks around
=."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from typer import Abort
from typer.core import TyperGroup
from typer.exceptions import TyperException

from raypft.errors import UserError, nearest

MEANT = {
    "train": "run",
    "fit": "run",
    "finetune": "run",
    "test": "run",
    "evaluate": "report",
    "eval": "report",
    "infer": "predict",
}
MEANT |= {"search": "tune", "sweep": "tune", "validate": "check"}
"""What others call our verbs."""
OF_JOBS = ("run", "check", "show", "tune", "plan")
"""Verbs whose words are names and key=value."""


def check_blanks(words: Sequence[str]) -> None:
    """Raise a UserError where blanks stand around a =; words: all that follows the program's name."""
    if not words or words[0] not in OF_JOBS:
        return
    for number, word in enumerate(words):
        after = words[number + 1] if number + 1 < len(words) else ""
        if word.startswith("=") and number > 1:
            meant = f"{words[number - 1]}={word[1:] or after}"
            raise UserError(f'command: found a blank before "="; write {meant} as one word')
        if word.endswith("=") and after and "=" not in after and not after.startswith("-"):
            raise UserError(f'command: found a blank after "{word}"; write {word}{after} as one word')


class Commands(TyperGroup):
    """The verbs; what they do not take is a UserError."""

    def main(self, *words: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Run the command that the words name; with `standalone_mode` exit with its code."""
        more.setdefault("prog_name", "raypft")  # of `python -m raypft.cli`, too: messages begin with the verb
        try:
            code = super().main(*words, standalone_mode=False, **more)
        except TyperException as error:
            if type(error).__name__ != "NoArgsIsHelpError":
                raise UserError(_line(error)) from None
            error.show()  # type: ignore[attr-defined]  # all of click's have it
            code = error.exit_code
        except Abort:  # Ctrl-C where nothing is kept, or at a question
            print("raypft: interrupted", file=sys.stderr)
            code = 130
        if standalone_mode:
            sys.exit(code or 0)
        return code

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that the first word names.

        Raises:
            UserError: it names none.
        """
        word = args[0]
        if word in self.commands or word.startswith("-") or ctx.resilient_parsing:  # of a shell that completes
            return super().resolve_command(ctx, args)
        raise UserError(f'command: "{word}" is unknown; {_verb(word, list(self.commands))}')


def _verb(word: str, known: list[str]) -> str:
    from raypft.campaigns.load import names_campaign  # noqa: PLC0415  (only where a word is unknown)
    from raypft.config.load import recipe_names  # noqa: PLC0415

    if word not in recipe_names() and names_campaign(word):
        return f"{word} is run by raypft tune {word}"
    if word in recipe_names() or word.endswith((".yaml", ".yml")):
        return f"{word} is run by raypft run {word}"
    meant = MEANT.get(word.replace("-", ""))
    return f'did you mean "{meant}"? known: {", ".join(sorted(known))}' if meant else nearest(word, known)


def _line(error: TyperException) -> str:
    """What typer says of the words of a command."""
    context: Any = getattr(error, "ctx", None)
    path = " ".join(context.command_path.split()[1:]) if context is not None else ""
    told = " ".join(error.format_message().split()).rstrip(".")
    option = getattr(error, "option_name", "")
    takes_keys = context is not None and any(param.name == "words" for param in context.command.params)
    hint = _as_key(option) if takes_keys else ""
    return f"{path or 'command'}: {told[:1].lower()}{told[1:]}; {hint or f'see raypft {path} --help'}"


def _as_key(option: str) -> str:
    """How the job's key is given that an option is called like; empty where there is none."""
    from raypft.config.job import Job  # noqa: PLC0415  (as above)

    name = option.lstrip("-").replace("-", "_")
    keys = list(_keys(Job))
    key = next((key for key in keys if name in (key, key.rpartition(".")[2])), None)
    if key is None:
        return ""
    words = iter(sys.argv)
    given = next((word for word in words if word.partition("=")[0] == option), "")
    value = given.partition("=")[2] or next(words, "")
    return f"keys of a job stand without dashes: {key}={value if value and not value.startswith('-') else '…'}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key below a model, those near the top first."""
    groups = []
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            groups.append((field.annotation, f"{prefix}{name}."))
    for below, path in groups:
        yield from _keys(below, path)
