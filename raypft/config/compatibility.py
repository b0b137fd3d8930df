"""What goes with what: method x family x readout x task kind x ZeRO stage, from what methods and readouts declare.

The same declarations are checked when a job is loaded, printed by `raypft list matrix` and rendered into the README.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from raypft.config.job import Job
from raypft.errors import UserError
from raypft.methods import method_class, method_names
from raypft.readouts import readout_class, readout_names
from raypft.tasks.task import Kind, load_task

FAMILIES = ("masked", "causal", "seq2seq")
KINDS: tuple[str, ...] = get_args(Kind)
MARKERS = ("<!-- matrix -->", "<!-- /matrix -->")
"""Between these lines of the README the matrix stands."""
MARKUP = {"soft": ("<soft>",), "demo_label": ("<demos>", "<slot>")}
"""What a pattern must hold for a mark to be recorded."""


def readouts_for(method: str, family: str | None = None, kind: str | None = None, slot: bool = True) -> list[str]:
    """The readouts that go with a method, on a family and for a task kind where these are given.

    Args:
        slot: whether the pattern has a <slot>.
    """
    own = method_class(method)
    families = own.families if family is None else tuple({family} & set(own.families))
    kinds = own.kinds if kind is None else tuple({kind} & set(own.kinds))
    found = [(name, readout_class(name)) for name in readout_names()]
    return [
        name
        for name, reads in found
        if set(families) & set(reads.families) and set(kinds) & set(reads.kinds) and (slot or not reads.needs_slot)
    ]


def check_job(job: Job, family: str | None = None) -> None:
    """Whether a job's method, readout, task kind and ZeRO stage go together, and with the model family once it is known.

    Raises:
        UserError: the first thing that does not, and what works instead.
    """
    task, method, readout = load_task(job.task), job.method["name"], job.readout["name"]
    own, reads = method_class(method), readout_class(readout)
    instead = _instead(method, family, task.kind, "<slot>" in task.pattern(job.pattern).text)
    if job.zero.stage > own.max_zero_stage:
        raise UserError(f"zero.stage: found {job.zero.stage}; method {method} works up to stage {own.max_zero_stage}")
    if family is not None and family not in own.families:
        raise UserError(f"method: {method} works with {_and(own.families)} models; {job.backbone} is {family}")
    if task.kind not in own.kinds:
        raise UserError(
            f"method: {method} works with tasks of kind {_and(own.kinds)}; {task.name} is {task.kind}; {_other_method(family, task.kind)}"
        )
    if task.kind not in reads.kinds:
        raise UserError(f"readout: {readout} does not answer tasks of kind {task.kind} ({task.name}); {instead}")
    if family is not None and family not in reads.families:
        raise UserError(
            f"readout: {readout} works with {_and(reads.families)} models; {job.backbone} is {family}; {instead}"
        )
    if family is not None and reads.needs_slot and "<slot>" not in task.pattern(job.pattern).text:
        raise UserError(f"readout: {readout} reads a label word at <slot>; pattern {job.pattern} has none; {instead}")
    if not set(own.families) & set(reads.families):
        raise UserError(
            f"readout: {readout} works with {_and(reads.families)} models, method {method} with {_and(own.families)}; {instead}"
        )


def _instead(method: str, family: str | None, kind: str, slot: bool) -> str:
    fitting = readouts_for(method, family, kind, slot)
    if fitting:
        return f"use readout={_or(fitting)}"
    families = [other for other in FAMILIES if readouts_for(method, other, kind, slot)]
    return f"use a {_or(families)} backbone" if families else _other_method(family, kind)


def _other_method(family: str | None, kind: str) -> str:
    fitting = [name for name in method_names() if readouts_for(name, family, kind)]
    families = [other for other in FAMILIES if any(readouts_for(name, other, kind) for name in method_names())]
    return f"use method={_or(fitting)}" if fitting else f"use a {_or(families)} backbone"


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)


def matrix() -> str:
    """The matrix as Markdown: per method the readouts on each family; per readout the task kinds it answers."""
    methods = [["method", *FAMILIES, "task kinds", "pattern needs", "ZeRO"]]
    for name in method_names():
        own = method_class(name)
        cells = [", ".join(readouts_for(name, family)) or "–" for family in FAMILIES]
        needs = " ".join(f"`{markup}`" for mark in own.marks for markup in MARKUP[mark])
        stages = f"0–{own.max_zero_stage}" if own.max_zero_stage else "0"
        methods.append([name, *cells, "all" if own.kinds == KINDS else ", ".join(own.kinds), needs, stages])
    readouts = [["readout", *FAMILIES]]
    for name in readout_names():
        own = readout_class(name)
        kinds = ", ".join(own.kinds) + (" (pattern with `<slot>`)" if own.needs_slot else "")
        readouts.append([name, *(kinds if family in own.families else "–" for family in FAMILIES)])
    return "\n\n".join(_markdown(rows) for rows in (methods, readouts)) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def rendered(readme: str) -> str:
    """A README with the matrix between its markers brought up to date.

    Raises:
        ValueError: it has no markers.
    """
    begin, end = (readme.find(marker) for marker in MARKERS)
    if begin < 0 or end < begin:
        raise ValueError(f"expected the lines {' and '.join(MARKERS)}")
    return f"{readme[: begin + len(MARKERS[0])]}\n{matrix()}{readme[end:]}"
