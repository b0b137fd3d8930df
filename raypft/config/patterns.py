"""Which of a task's patterns a job asks with, where it names none or its recipe names one that the task doesn't have.

What a pattern must hold follows from the job: <slot> where label words are read, <soft> where the method has soft
tokens, <demos> where demonstrations are shown; where a head or a decoder answers, no <slot>. The one pattern of the
task that holds just this is taken. Two need not be in the file: `vanilla`, the fields alone, and `NAME+demos`, the one
pattern that would fit with demonstrations before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from raypft.config.job import Job
from raypft.errors import UserError
from raypft.methods.base import Config, Method
from raypft.readouts.base import Readout
from raypft.tasks.task import FIELDS_ALONE, WITH_DEMOS, Pattern, Task


def pattern_for(
    task: Task, job: Job, usual: str | None, method: type[Method], config: Config, readout: type[Readout]
) -> str:
    """The name of the pattern a job asks with.

    Args:
        usual: what the recipe calls it.

    Raises:
        UserError: no pattern of the task fits, with an example of one that does; or several do.
    """
    if usual is not None and usual in task.patterns:
        return usual
    needs = list(_needs(job, method, config, readout))
    fitting = _fitting(task, needs)
    if len(fitting) > 1:
        raise UserError(
            f"pattern: {job.recipe} can ask with {', '.join(fitting)} of task {task.name}; choose one with "
            f"pattern=NAME, among several recipes with {job.recipe}.pattern=NAME"
        )
    if fitting:
        return fitting[0]
    if not needs:
        return FIELDS_ALONE
    bare = _fitting(task, [mark for mark in needs if mark != "<demos>"])
    if "<demos>" in needs and len(bare) == 1 and task.kind.one_label:
        return bare[0] + WITH_DEMOS
    among = f", {' and '.join(bare)} would do with <demos> before the text" if len(bare) > 1 else ""
    raise UserError(
        f"pattern: {job.recipe} needs {' and '.join(needs)} in a pattern; task {task.name} has none with just that"
        f"{among}; add one to its patterns, e.g. {job.recipe}: {json.dumps(_example(task, needs), ensure_ascii=False)}"
    )


def _fitting(task: Task, needs: list[str]) -> list[str]:
    return [name for name, pattern in task.patterns.items() if _fits(pattern, needs)]


def _needs(job: Job, method: type[Method], config: Config, readout: type[Readout]) -> Iterator[str]:
    """The markup that a pattern must hold, in the order of a prompt."""
    shows = "demo_label" in method.marks
    if job.demos or shows:
        yield "<demos>"
    if config.soft_tokens:
        yield "<soft>"
    if readout.needs_slot or shows:
        yield "<slot>"


def _fits(pattern: Pattern, needs: list[str]) -> bool:
    """Whether a pattern holds what is needed and nothing that is answered otherwise; <demos> may stand for none."""
    held = {mark for mark in ("<demos>", "<soft>", "<slot>") if mark in pattern.text}
    return held - {"<demos>"} == {*needs} - {"<demos>"} and held >= {*needs}


def _example(task: Task, needs: list[str]) -> str:
    """A pattern that holds what is needed, of the task's own fields."""
    word = " <sep> {token} :" if task.kind.answers_words and "<slot>" in needs else " ."
    fields = " <sep> ".join(f"{{{field}}}" for field in task.fields)
    demos = "<demos>" if "<demos>" in needs else ""
    return demos + " ".join([fields + word, *(mark for mark in needs if mark != "<demos>")])
