"""One prompt as tokens: what passes from encoding to batches. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field


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
