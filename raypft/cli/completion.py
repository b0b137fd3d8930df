"""What a shell may put in for the words of a command: names of recipes, tasks, campaigns and the like, keys of jobs and
their values. Without torch: someone waits."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

OTHER = "…"
"""Beside a key that stands alone, so that bash puts no blank behind its =."""


def _values() -> dict[str, Callable[[], Iterable[str]]]:
    """Key to the names that it takes."""
    # loaded only where a shell asks
    from raypft.backbones.aliases import ALIASES  # noqa: PLC0415
    from raypft.data.sampling import PROTOCOLS  # noqa: PLC0415
    from raypft.methods import METHODS  # noqa: PLC0415
    from raypft.readouts import READOUTS  # noqa: PLC0415
    from raypft.tasks.load import task_names  # noqa: PLC0415

    return {
        "task": task_names,
        "backbone": lambda: ALIASES,
        "method": METHODS.names,
        "readout": READOUTS.names,
        "protocol": lambda: PROTOCOLS,
    }


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Every dotted key of a model, with the values it takes where these are few."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _choices(kind)


def _choices(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is not None and str(get_origin(kind)) == "typing.Literal":
        return list(map(str, get_args(kind)))
    found: list[str] = []
    for inner in get_args(kind):
        found += _choices(inner) if inner is not type(None) else []
    return found


def _bash() -> list[str]:
    """The words up to the cursor as bash divides them, = among them; none in another shell."""
    try:
        return shlex.split(os.environ["COMP_WORDS"])[: int(os.environ["COMP_CWORD"]) + 1]
    except (KeyError, ValueError):
        return []


def _completed(incomplete: str, names: Iterable[str], keys: dict[str, list[str]]) -> list[str]:
    """The words that begin so: names, keys with their =, or the values of the key that stands before."""
    words = _bash()
    if "=" in words[-2:]:  # KEY, =, the beginning of a value
        place = len(words) - 1 - words[::-1].index("=")
        return [value for value in keys.get(words[place - 1], []) if value.startswith("".join(words[place + 1 :]))]
    key, equals, begun = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in keys.get(key, []) if value.startswith(begun)]
    known = itertools.chain(names, map("{}=".format, keys))
    found = [name for name in known if name.startswith(incomplete)]
    return [*found, found[0] + OTHER] if words and len(found) == 1 and found[0].endswith("=") else found


def _job_keys() -> dict[str, list[str]]:
    from raypft.config.job import Job  # noqa: PLC0415  (as above)

    keys = dict(_keys(Job))
    keys |= {key: list(names()) for key, names in _values().items()}
    for key in ("recipe", "source"):  # of a file, not of a command
        keys.pop(key)
    return keys


def jobs(incomplete: str) -> list[str]:
    """For the words of `run`, `check` and `show`."""
    from raypft.config.load import recipe_names  # noqa: PLC0415  (as above)

    return _completed(incomplete, recipe_names(), _job_keys())


def campaigns(incomplete: str) -> list[str]:
    """For the words of `tune` and `plan`."""
    from raypft.campaigns.load import campaign_names  # noqa: PLC0415  (as above)

    return _completed(incomplete, campaign_names(), {"scale": [], **_job_keys()})


def catalogues(incomplete: str) -> list[str]:
    """For the word of `list`."""
    from raypft.cli.catalogues import CATALOGUES  # noqa: PLC0415  (as above)

    return _completed(incomplete, [*CATALOGUES, "schema"], {})


def analyses(incomplete: str) -> list[str]:
    """For the first word of `analyse`."""
    from raypft.analysis import ANALYSES  # noqa: PLC0415  (as above)

    return _completed(incomplete, ANALYSES.names(), {})


def methods(incomplete: str) -> list[str]:
    """For the words of `contract`."""
    from raypft.methods import METHODS  # noqa: PLC0415  (as above)

    return _completed(incomplete, METHODS.names(), {})


def verbs(incomplete: str) -> list[str]:
    """For the words of `runs`: what to do, and the names in the folder runs."""
    names = sorted(os.listdir("runs")) if os.path.isdir("runs") else []
    return _completed(incomplete, ["compare", "remove", *names], {})
