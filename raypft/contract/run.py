"""`raypft contract`: every promise on every kind of tiny model that a method works with, an outcome at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raypft.contract import cases, tiny
from raypft.contract.checks import PROMISES, SHAPE, DoesNotApply, Promise
from raypft.errors import UserError, nearest
from raypft.methods import METHODS
from raypft.schema import set_key, split_override

KINDS = list(tiny.MODELS)


@dataclass(frozen=True)
class Outcome:
    """What became of a promise on a tiny model: ok, FAILED or skipped, and why."""

    status: str
    kind: str
    promise: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.status:7} {self.kind:5} {self.promise}" + (f": {self.reason}" if self.reason else "")


def method_of(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The method that a command names, and its keys that differ from their defaults.

    Raises:
        UserError: not one name; a key that is none of the method's.
    """
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        raise UserError(f"contract: found {len(names)} names; expected one method or file, e.g. raypft contract lora")
    values: dict[str, Any] = {"method": names[0]}
    for word in words:
        if "=" in word:
            set_key(values, *split_override(word), told=word)
            if not word.startswith("method."):
                raise UserError(f'contract: override "{word}": expected a key of the method, e.g. method.layer=2')
    options = dict(values["method"]) if isinstance(values["method"], dict) else {}
    return options.pop("name", names[0]), options


def kinds_of(method: str, asked: Sequence[str] | None = None) -> list[str]:
    """The kinds of tiny models to try: those asked for that the method works with; two of each family where None.

    Raises:
        UserError: no such kind, or none that the method works with.
    """
    for kind in asked or ():
        if kind not in KINDS:
            raise UserError(f'contract: --on: "{kind}" is unknown; {nearest(kind, KINDS)}')
    families = METHODS.load(method).families
    kinds = cases.kinds_of(method) if asked is None else [kind for kind in asked if tiny.MODELS[kind][0] in families]
    if not kinds:
        fitting = cases.kinds_of(method)
        works = f"it works with {', '.join(fitting)}" if fitting else f"families are {', '.join(tiny.FAMILIES)}"
        raise UserError(f"contract: {method} works with none of {', '.join(asked or KINDS)}; {works}")
    return kinds


def outcomes(method: str, kinds: Sequence[str], options: dict[str, Any], engines: bool = False) -> Iterator[Outcome]:
    """The promises of a method, checked one after the other.

    Args:
        options: keys of the method; engines: also one loss curve over ZeRO stages and processes, which takes minutes.
    """
    trains = METHODS.load(method).trains
    promises = [promise for promise in PROMISES if trains or not promise.of_training]
    whole = []
    for kind in kinds:
        try:
            cases.cell(method, tiny.backbone(kind), **options)
        except UserError as error:  # as a method says that it does not go with a model
            yield Outcome("skipped", kind, "all promises", str(error))
            continue
        shape = _outcome(SHAPE, method, kind, options)
        yield shape
        if shape.status == "FAILED":
            continue
        whole.append(kind)
        for promise in promises:
            if promise is not SHAPE:
                yield _outcome(promise, method, kind, options)
    if engines and trains and whole:
        yield from _over_engines(method, whole, options)


def _over_engines(method: str, kinds: Sequence[str], options: dict[str, Any]) -> Iterator[Outcome]:
    from raypft.contract.engines import PROMISE, broken_curves  # noqa: PLC0415  (only where it is asked for)

    try:
        broken = broken_curves(method, kinds, **options)
    except Exception as error:  # whatever the user's code raises, in whichever process
        broken = dict.fromkeys(kinds, _last_line(error))
    for kind, line in broken.items():
        yield Outcome("FAILED" if line else "ok", kind, PROMISE, line)


def _outcome(promise: Promise, method: str, kind: str, options: dict[str, Any]) -> Outcome:
    try:
        promise.check(method, kind, **options)
    except DoesNotApply as reason:
        return Outcome("skipped", kind, promise.text, str(reason))
    except AssertionError as error:
        return Outcome("FAILED", kind, promise.text, _last_line(error))
    except Exception as error:  # whatever the user's code raises
        return Outcome("FAILED", kind, promise.text, f"{type(error).__name__}: {_last_line(error)}")
    return Outcome("ok", kind, promise.text)


def _last_line(error: Exception) -> str:
    """What an error says; of a traceback of another process only its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def conclude(method: str, seen: Sequence[Outcome]) -> str:
    """The closing line.

    Raises:
        UserError: a promise is broken, or none could be checked.
    """
    count = Counter(outcome.status for outcome in seen)
    if count["FAILED"]:
        raise UserError(f"contract: {method} breaks promises: {count['FAILED']} of {count['ok'] + count['FAILED']}")
    if not count["ok"]:
        raise UserError(f"contract: {method} could not be built on any of these models: {seen[0].reason}")
    return f"{method} keeps its promises: {count['ok']} checked, {count['skipped']} skipped"
