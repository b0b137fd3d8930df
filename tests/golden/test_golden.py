"""Every prompt and label word a model ever sees, as a person reads it: tests/golden/prompts.txt.

A speaker of the language can read that file; a change of a pattern shows there. `python tests/golden/test_golden.py`
writes it.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from raypft.data.sources import SAMPLES
from raypft.tasks.load import load_task, task_names
from raypft.tasks.prompts import queries, readable
from raypft.tasks.query import Demonstration
from raypft.tasks.task import Pattern, Task, Wording

GOLDEN = Path(__file__).parent / "prompts.txt"


ANSWERED = {
    "tokens": ["The", "dogs", "sleep", "."],
    "question": "Who sleeps?",
    "context": "In the yard the dogs sleep.",
}


def invented(text: str) -> dict[str, str]:
    """A row of any task that is not bundled."""
    return {
        "text": text,
        "review_body": text,
        "content": text,
        "premise": "A man is sleeping.",
        "hypothesis": "He is awake.",
        **ANSWERED,
    }


ROW = invented("The room was clean and the staff kind.")
DEMOS = [invented("We waited an hour for cold soup."), invented("I would come again!")]
SOFT_TOKENS = 4


def row_of(task: Task, language: str) -> dict[str, str]:
    """The first test row of a bundled task in that language; an invented English one elsewhere."""
    path = SAMPLES / task.name / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return next((row for row in rows if row["language"] == language), ROW)


def prompt(task: Task, pattern: Pattern, language: str) -> str:
    """The prompt on one line, a line break shown as a bent arrow."""
    demos = [Demonstration(row, label, language) for row, label in zip(DEMOS, task.label.names, strict=False)]
    return readable(queries(task, pattern, row_of(task, language), language, SOFT_TOKENS, demos)[:2][-1]).replace(
        "\n", "↵"
    )


def label_words(task: Task, wording: Wording) -> str:
    """Labels with their words and how these are looked up."""
    if wording.verbalizer is None:
        return "no label words"
    return " · ".join(f"{label}: {wording.verbalizer[label]}" for label in task.label.names) + f" ({wording.mode})"


def lines() -> list[str]:
    """Per task and pattern: languages with the same label words and prompt share a line."""
    written = []
    for name in task_names():
        task = load_task(name)
        for pattern_name, pattern in task.patterns.items():
            written += ["", f"== {name} {pattern_name}"]
            shown: dict[tuple[str, str], list[str]] = {}
            for language in task.languages:
                shown.setdefault(
                    (label_words(task, pattern.wording(language)), prompt(task, pattern, language)), []
                ).append(language)
            before = None
            for (words, text), (first, *others) in shown.items():
                written += [words] if words != before else []
                written.append(f"  {first}{' (and ' + ', '.join(others) + ')' if others else ''}: {text}")
                before = words
    return written[1:]


def test_prompts_and_label_words_are_those_a_person_has_read():
    changes = list(
        difflib.unified_diff(
            GOLDEN.read_text(encoding="utf-8").splitlines(), lines(), "golden", "now", lineterm="", n=1
        )
    )
    assert not changes, "\n".join(
        ["prompts changed; read the difference, then run: python tests/test_golden.py", *changes]
    )


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(lines()) + "\n", encoding="utf-8")
