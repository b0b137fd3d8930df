"""One prompt as tokens: what passes from encoding to batches. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Passage:
    """Where a span's slots lie in its text: the characters [starts, ends) of each slot, one entry a slot."""

    text: str
    starts: list[int]
    ends: list[int]


@dataclass(frozen=True)
class Encoded:
    """One prompt as tokens; a row has one prompt, or several parts: one a queried word, one a window.

    ids, segments: [T]; marks: mark name to token positions recorded while rendering ("slot", "soft", "demo_label");
    gold: one entry a slot, what the readout makes of it is its own: a label's index, a token id, flags; -1 if unknown;
    wording: index of the verbalizer the prompt's language uses; demo_tokens: how many tokens at the start are
    demonstrations (the same in every prompt of a run); target: what a decoder reads, [U], slots are then positions in
    it; answers: the right answer as text, one a word that is tagged, all that are right of a span; passage: what a span
    is read from.
    """

    key: str
    language: str
    ids: list[int]
    segments: list[int]
    marks: dict[str, list[int]]
    gold: list[int] = field(default_factory=lambda: [-1])
    wording: int = 0
    part: int = 0
    demo_tokens: int = 0
    target: list[int] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    passage: Passage | None = None

    @property
    def name(self) -> str:
        """Key and part: unique among the prompts of a role."""
        return f"{self.key}#{self.part}"

    def but(self, **fields: Any) -> Encoded:
        """The prompt with other values of some fields; what `replace` gives, in a fifth of the time."""
        return Encoded.holding({**vars(self), **fields})

    @staticmethod
    def holding(fields: dict[str, Any]) -> Encoded:
        """The prompt with these values of all fields; what `Encoded(**fields)` gives, in a fifth of the time."""
        made = object.__new__(Encoded)
        vars(made).update(fields)
        return made

    def behind(self, count: int) -> Encoded:
        """The prompt without its first `count` tokens, positions counted from behind them; marks there are gone."""
        return self._cut(slice(count, len(self.ids))) if count else self

    def until(self, count: int) -> Encoded:
        """The first `count` tokens of the prompt, its slot at the last."""
        cut = self._cut(slice(0, count))
        return cut.but(marks={**cut.marks, "slot": [count - 1]}, gold=[-1])

    def _cut(self, part: slice) -> Encoded:
        inside = range(part.start, part.stop)
        marks = dict[str, list[int]]()
        for mark, places in self.marks.items():
            marks[mark] = [at - part.start for at in places if at in inside]
        return self.but(ids=self.ids[part], segments=self.segments[part], marks=marks, demo_tokens=0)


def shared_tokens(prompts: Sequence[Encoded]) -> int:
    """How many tokens of demonstrations begin all these prompts; 0 where they differ, or nothing is behind them."""
    sizes = {prompt.demo_tokens for prompt in prompts}
    if len(sizes) != 1 or not (size := sizes.pop()):
        return 0
    first = prompts[0].ids[:size]
    return size if all(prompt.ids[:size] == first and len(prompt.ids) > size for prompt in prompts) else 0
