"""What goes with what: method x family x readout x task kind x ZeRO stage, from what methods and readouts declare.

The same declarations are checked when a job is loaded, printed by `raypft list matrix` and, in short, rendered into the
README.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from raypft.backbones.base import Backbone, lacking
from raypft.backbones.four_bit import check_package
from raypft.config.resolved import ResolvedJob
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.methods.base import Method
from raypft.readouts import READOUTS
from raypft.tasks.kinds import KINDS
from raypft.tasks.kinds.span import least_room
from raypft.tasks.metrics import OF_WRITTEN

FAMILIES = ("masked", "causal", "seq2seq")
MARKERS = ("<!-- matrix -->", "<!-- /matrix -->")
"""Between these lines of the README the short matrix stands."""
MARKUP = {"soft": ("<soft>",), "demo_label": ("<demos>", "<slot>")}
"""What a pattern must hold for a mark to be recorded."""


def readouts_for(
    method: type[Method], family: str | None = None, kind: str | None = None, has_slot: bool = True
) -> list[str]:
    """The names of the readouts that go with a method, on a family and for a task kind where these are given.

    Args:
        has_slot: whether the pattern has a <slot>.
    """
    families = set(method.families) if family is None else {family} & set(method.families)
    kinds = set(method.kinds) if kind is None else {kind} & set(method.kinds)
    fitting = []
    for name in READOUTS.names():
        readout = READOUTS.load(name)
        reads = families & set(readout.families) and kinds & set(readout.kinds)
        if reads and (has_slot or not readout.needs_slot):
            fitting.append(name)
    return fitting


def check_job(resolved: ResolvedJob, family: str | None = None) -> None:
    """Whether a job's method, readout, task kind and ZeRO stage go together, and with the model family once it is
    known.

    Raises:
        UserError: the first thing that does not, and what works instead.
    """
    job, task, method, readout = resolved.job, resolved.task, resolved.method, resolved.readout
    named, reads = job.method["name"], job.readout["name"]
    kind, has_slot = task.kind.name, "<slot>" in resolved.pattern.text
    instead = _instead(method, family, kind, has_slot)
    if job.zero.stage > method.max_zero_stage:
        limit = method.max_zero_stage
        raise UserError(f"zero.stage: found {job.zero.stage}; method {named} works up to stage {limit}")
    if job.train.quantize and job.zero.stage == 3:
        raise UserError(
            f"zero.stage: found 3 with train.quantize={job.train.quantize}; weights in 4 bits are not shared out; use "
            "zero.stage=2 or less"
        )
    if family is not None and family not in method.families:
        raise UserError(f"method: {named} works with {_and(method.families)} models; {job.backbone} is {family}")
    if kind not in method.kinds:
        other = _other_method(family, kind)
        raise UserError(
            f"method: {named} works with tasks of kind {_and(method.kinds)}; {task.name} is {kind}; {other}"
        )
    if kind not in readout.kinds:
        raise UserError(f"readout: {reads} does not answer tasks of kind {kind} ({task.name}); {instead}")
    if family is not None and family not in readout.families:
        raise UserError(
            f"readout: {reads} works with {_and(readout.families)} models; {job.backbone} is {family}; {instead}"
        )
    if family is not None and readout.needs_slot and not has_slot:
        raise UserError(f"readout: {reads} reads a label word at <slot>; pattern {job.pattern} has none; {instead}")
    if job.dev.metric in OF_WRITTEN and not (readout.writes and "{token}" not in resolved.pattern.text):
        raise UserError(
            f"dev.metric: found {job.dev.metric}, which reads sentences written with their tags; "
            "use readout=text and a pattern without {token}, or another metric"
        )
    if resolved.readout_config.content_free and (not task.kind.one_label or (method.trains and job.train.epochs)):
        found = f"tasks of kind {kind}" if not task.kind.one_label else f"a model that {named} trains"
        raise UserError(
            f"readout.calibration: found contextual with {found}; expected a task of kind choice and a model that is "
            "asked as it is, e.g. the recipe icl"
        )
    if not set(method.families) & set(readout.families):
        raise UserError(
            f"readout: {reads} works with {_and(readout.families)} models, "
            f"method {named} with {_and(method.families)}; {instead}"
        )


def check_fit(resolved: ResolvedJob, backbone: Backbone) -> Method:
    """What a job and its backbone must agree on, known without weights; the method as built on the backbone.

    Raises:
        UserError: method, family, readout and kind (check_job), pattern and readout, marks, demonstrations, positions
        or layer
            do not fit together; label words; windows without a step; nothing trains.
    """
    job, task, pattern, method = resolved.job, resolved.task, resolved.pattern, resolved.method
    named, config = job.method["name"], resolved.method_config
    check_job(resolved, backbone.family)
    for mark in method.marks:
        for markup in MARKUP[mark]:
            if markup not in pattern.text:
                raise UserError(
                    f"pattern: method {named} needs {markup}; pattern {job.pattern} of {task.name} has none"
                )
    if "<soft>" in pattern.text and not config.soft_tokens:
        raise UserError(
            f"pattern: {job.pattern} has <soft>, but method {named} has no soft tokens; "
            "use method=soft_prompt or another pattern"
        )
    if job.demos and "<demos>" not in pattern.text:
        raise UserError(f"demos: found {job.demos}; pattern {job.pattern} of {task.name} has no <demos>")
    if job.demos and not backbone.text.takes_demos:
        raise UserError(
            f"demos: {job.backbone} is a {backbone.family} model and takes no demonstrations; "
            "set demos=0 or use a causal backbone"
        )
    if "demo_label" in method.marks and not job.demos:
        raise UserError(f"demos: method {named} needs demonstrations; set demos=1")
    limit, taken = backbone.num_positions, config.positions_taken
    if limit is not None and job.train.max_tokens + taken > limit:
        left = (
            f"; method {named} takes {taken} of them, which leaves {max(0, limit - taken)} for the text"
            if taken
            else ""
        )
        raise UserError(
            f"train.max_tokens: found {job.train.max_tokens}; {job.backbone} has {limit} positions{left}; "
            "set train.max_tokens to fit"
        )
    if job.train.checkpointing and not backbone.has_blocks:
        raise UserError(
            f"train.checkpointing: found true; the body of {backbone.config.model_type} models is no row of blocks, "
            "which could run again; set train.checkpointing=false, or choose another backbone"
        )
    if resolved.readout.reads_vocabulary and backbone.lacks:
        raise UserError(lacking(job.backbone, backbone.lacks))
    if task.kind.passage is not None:
        resolved.readout_config.step(least_room(job.train.max_tokens))
    built = method(config, backbone)
    with torch.device("meta"):
        readout = resolved.readout(resolved.readout_config, task, pattern, backbone)
    trains = built.trainable() or any(p.requires_grad for p in readout.parameters())
    if method.trains and job.train.epochs > 0 and not trains:
        raise UserError(
            f"method: {named} opens nothing, no parameter trains; open some through the backbone's seams, "
            "set trains = False in it, or train.epochs=0"
        )
    if job.train.quantize:
        check_package()
    return built


def _instead(method: type[Method], family: str | None, kind: str, has_slot: bool) -> str:
    fitting = readouts_for(method, family, kind, has_slot)
    if fitting:
        return f"use readout={_or(fitting)}"
    families = [other for other in FAMILIES if readouts_for(method, other, kind, has_slot)]
    return f"use a {_or(families)} backbone" if families else _other_method(family, kind)


def _other_method(family: str | None, kind: str) -> str:
    fitting = [name for name in METHODS.names() if readouts_for(METHODS.load(name), family, kind)]
    if fitting:
        return f"use method={_or(fitting)}"
    return f"use a {_or([other for other in FAMILIES if _has_method(other, kind)])} backbone"


def _has_method(family: str, kind: str) -> bool:
    return any(readouts_for(METHODS.load(name), family, kind) for name in METHODS.names())


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)


def matrix() -> str:
    """The matrix as Markdown: per method the readouts on each family; per readout the task kinds it answers."""
    methods = [["method", *FAMILIES, "task kinds", "pattern needs", "ZeRO"]]
    methods += [_method_row(name) for name in METHODS.names()]
    readouts = [["readout", *FAMILIES], *map(_readout_row, READOUTS.names())]
    return f"{_markdown(methods)}\n\n{_markdown(readouts)}\n"


def _method_row(name: str) -> list[str]:
    method: type[Method] = METHODS.load(name)
    readouts = [", ".join(readouts_for(method, family)) or "–" for family in FAMILIES]
    needs: list[str] = []
    for mark in method.marks:
        needs += [f"`{markup}`" for markup in MARKUP[mark]]
    kinds = "all" if method.kinds == tuple(KINDS) else ", ".join(method.kinds)
    stages = f"0–{method.max_zero_stage}" if method.max_zero_stage else "0"
    return [name, *readouts, kinds, " ".join(needs), stages]


def _readout_row(name: str) -> list[str]:
    readout = READOUTS.load(name)
    kinds = ", ".join(readout.kinds) + (" (pattern with `<slot>`)" if readout.needs_slot else "")
    return [name, *(kinds if family in readout.families else "–" for family in FAMILIES)]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def short_matrix() -> str:
    """Method and model family as Markdown, with what each method is."""
    rows = [["method", "", *FAMILIES]]
    for name in METHODS.names():
        families, about = METHODS.load(name).families, re.sub(r"<\w+>", r"`\g<0>`", METHODS.about(name))
        rows.append([f"`{name}`", about, *("✓" if family in families else "–" for family in FAMILIES)])
    return f"{_markdown(rows)}\n"


def rendered(readme: str) -> str:
    """A README with the short matrix between its markers brought up to date.

    Raises:
        ValueError: it has no markers.
    """
    begin, end = (readme.find(marker) for marker in MARKERS)
    if begin < 0 or end < begin:
        raise ValueError(f"expected the lines {' and '.join(MARKERS)}")
    return f"{readme[: begin + len(MARKERS[0])]}\n{short_matrix()}{readme[end:]}"
