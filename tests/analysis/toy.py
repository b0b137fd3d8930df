"""A task in two languages whose labels a word tells, its rows, and a task of its texts alone."""

from __future__ import annotations

from typing import Any

WORDS = {"negative": "bad", "positive": "good"}
TOLD = {"negative": ["bad", "terrible", "no"], "positive": ["good", "great", "fine"]}
PATTERNS = {
    "shown": {"text": "<demos>Review : {text} Sentiment : <slot>", "verbalizer": WORDS, "source": "test"},
    "plain": {"text": "{text} . it was <slot> .", "verbalizer": WORDS, "source": "test"},
    "soft": {"text": "{text} . it was <soft> <slot> .", "verbalizer": WORDS, "source": "test"},
}
TASK = {
    "about": "test",
    "kind": "choice",
    "fields": {"text": "text"},
    "label": {"names": list(WORDS)},
    "languages": ["en", "de"],
    "metric": "accuracy",
    "sources": {"files": {"files": {"train": "train", "validation": "validation", "test": "test"}}},
    "patterns": PATTERNS,
}
TEXT = {
    "about": "test",
    "kind": "mlm",
    "fields": {"text": "text"},
    "languages": ["en", "de"],
    "metric": "token_accuracy",
    "sources": {"files": {"files": {"train": "train"}}},
}


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows whose label a word tells, the same in both languages."""
    made = []
    for number in range(start, start + count):
        label = list(WORDS)[number % 2]
        text = f"the film was {TOLD[label][number % 3]} {['one', 'two', 'three', 'four'][number % 4]}"
        for language in TASK["languages"]:
            made.append({"id": str(number), "language": language, "text": text, "label": label})
    return made
