"""A task's YAML out of what the columns of a file were taken for, with what a person edits next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from raypft.data.guess import Guess
from raypft.data.profile import slug
from raypft.errors import UserError
from raypft.tasks.kinds import KINDS
from raypft.tasks.metrics import check_chunks

RESERVED = ("id", "language", "label", "token")
"""Names that a field can't have: they are columns of every table, or stand for something else in a pattern."""
PATTERN_NOTE = """\
  # {field} is the row's text, <slot> where the model answers: last, where masked and causal models both can; for masked
  # ones alone it may stand anywhere. The verbalizer has a word for each label, here its own name; of a word that is
  # several tokens for a model its first counts, so choose words whose first tokens differ and that the text leads to.
"""
TAGS_NOTE = """\
# patterns:  # a head on each word needs none; to ask about a word ({token}), as the recipe topro does, write one:
#   topro:
#     text: "{tokens} <sep> The kind of {token} is: <slot> ."
#     verbalizer: {TAG: one word a tag, all different}
#     mode: first_piece
"""


def task_yaml(found: Guess, files: str | dict[str, str], root: str | None, format: str | None, first: str) -> str:
    """The text of a task's YAML.

    Args:
        files: the file, or one a split, below `root` (None: beside the YAML); format: see `Source.format`; first: the
        file that was looked at.
    """
    fields = _fields(found)
    columns: dict[str, Any] = {name: theirs for name, theirs in fields.items() if name != theirs}
    label = found.label
    if label in RESERVED or label in columns:
        label = "label"
    if label != found.label:
        columns[label] = found.label
    for ours, theirs in (("id", found.id), ("language", found.language)):
        used = {*fields.values(), found.label}
        if theirs not in (None, ours):
            columns[ours] = theirs
        elif theirs is None and ours in {*found.unused, *used}:
            columns[ours] = []  # what is called so is something else
    source: dict[str, Any] = {"files": files}
    if columns:
        source["columns"] = columns
    if format is not None:
        source["format"] = format
    lines = [
        f"# raypft init wrote this from {_plain(first)}; change what is wrong, raypft check tells",
        f"kind: {found.kind}",
    ]
    if root is None and not found.numbers:
        lines += [_line(key, value) for key, value in source.items()]
    else:
        source["root"] = root or "."
        if found.numbers:
            source["labels"] = found.numbers
        lines.append(_line("sources", {"files": source}))
    lines.append(_line("fields", list(fields)))
    lines += _label_lines(found, label)
    lines.append(_line("languages", list(found.languages)))
    if found.kind == "tags" and not _are_chunks(found):
        lines.append("metric: token_accuracy")
    return "\n".join([*lines, *_pattern_lines(found, list(fields))]) + "\n"


def _line(key: str, value: Any) -> str:
    """A key of a YAML file and its value, on one line."""
    options: Any = {"default_flow_style": True, "width": float("inf"), "allow_unicode": True, "sort_keys": False}
    return yaml.dump({key: value}, Dumper=_OneLine, **options).strip()[1:-1]


class _OneLine(yaml.SafeDumper):
    """Texts of several lines stand in one, in double quotes."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if len(text.splitlines()) > 1 or text.endswith("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_OneLine.add_representer(str, _text)


def _plain(text: str) -> str:
    """A text as a comment can hold it."""
    return re.sub(r"[^\w .,()-]", "_", text)


def _fields(found: Guess) -> dict[str, str]:
    """Field as patterns call it to the file's column."""
    if found.kind == "tags":
        return {"tokens": found.texts[0]}
    fields: dict[str, str] = {}
    for number, column in enumerate(found.texts, 1):
        whole = "text" if len(found.texts) == 1 else f"text{number}"
        name = column if re.fullmatch(r"\w+", column) else slug(column)
        fields[name if name and name not in (*RESERVED, *fields) else whole] = column
    if len(fields) < len(found.texts):  # names that are alike but for blanks and dots
        return {f"text{number}": column for number, column in enumerate(found.texts, 1)}
    return fields


def _label_lines(found: Guess, label: str) -> list[str]:
    if found.unanswerable:
        return [_line("label", {"column": label, "unanswerable": True})]
    lines = [_line("label", label)]
    if found.labels:
        lines.append(f"# rows: {', '.join(map(str, found.labels.values()))}" if found.kind == "choice" else "# tags:")
        lines.append(_line("labels", list(found.labels)))
    return lines


def _are_chunks(found: Guess) -> bool:
    """Whether the tags are such as the usual metric of their kind scores."""
    names = list(found.labels)
    if KINDS["tags"].usual_metric(names) != "entity_f1":
        return True
    try:
        check_chunks(names)
    except UserError:
        return False
    return True


def asked(found: Guess) -> str:
    """The text of the pattern that is proposed: the row's text, what is asked, and where the answer stands."""
    cue = slug(found.label).replace("_", " ").strip() or "answer"
    cue = "answer" if cue in ("label", "labels", "class", "target", "gold", "y", "tag") or cue.isdecimal() else cue
    return "\n".join([*(f"{{{field}}}" for field in _fields(found)), f"{cue[:1].upper()}{cue[1:]}: <slot>"])


def words_of(found: Guess) -> Mapping[str, str]:
    """Label to the word that is proposed for it: its name."""
    return {name: name.strip() for name in found.labels}


def _pattern_lines(found: Guess, fields: list[str]) -> list[str]:
    if found.kind == "tags":
        return [*TAGS_NOTE.splitlines()]
    if found.kind != "choice":
        return []
    pattern = {"text": asked(found), "verbalizer": dict(words_of(found)), "mode": "first_piece"}
    lines = [f"    {_line(key, value)}" for key, value in pattern.items()]
    return ["patterns:", *PATTERN_NOTE.replace("{field}", f"{{{fields[0]}}}").splitlines(), "  ask:", *lines]
