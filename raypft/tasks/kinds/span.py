"""span: the answer to a row's question is a piece of its passage.

A passage longer than a prompt is read in windows that overlap; each window is a prompt, every token of it a slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raypft.encoded import Encoded, Passage
from raypft.errors import UserError
from raypft.tasks.kinds import base
from raypft.tasks.query import Piece, Query

CONTEXT = "context"


def least_room(max_tokens: int) -> int:
    """Tokens of a passage that a window holds at least: the question has at most half of a prompt."""
    return max_tokens - max_tokens // 2


class Span(base.Kind):
    """Answer texts and where they start; any of several is right."""

    name = "span"
    metrics = ("exact_match", "f1", "mlqa_exact_match", "mlqa_f1")
    fields = (CONTEXT, "question")
    passage = CONTEXT

    def usual_metric(self, names: Sequence[str]) -> str:
        return "f1"

    def read_labels(self, values: base.Values, rows: base.ReadRows) -> dict[str, pa.ChunkedArray]:
        texts, starts = [], []
        contexts, ids = rows.fields[CONTEXT].to_pylist(), rows.ids.to_pylist()
        for value, context, name in zip(base.listed(values), contexts, ids, strict=True):
            found = _answers(value, context, f'data: {rows.where} row "{name}"', rows.unanswerable)
            texts.append(found[0])
            starts.append(found[1])
        return {
            "label": base.column_of(texts, base.TEXTS),
            "starts": base.column_of(starts, pa.list_(pa.int32())),
        }

    def prompts(self, encoder: base.RowEncoder, row: Mapping[str, Any]) -> list[Encoded]:
        """Windows; slot 0 is the prompt's first token, which stands for "no answer here".

        At most half of a window goes to the question, the same part of it in all. Gold of a slot: 1 where the answer
        starts + 2 where it ends; of a window without the answer, and of every window where there is none, slot 0.
        """
        query, context = encoder.render(row), encoder.value(row, CONTEXT)
        at = next(i for i, piece in enumerate(query.pieces) if piece.mark == "passage")
        shown = query.pieces[at].text
        lead = len(shown) - len(shown.lstrip()) - (len(context) - len(context.lstrip()))
        ids, starts, ends = encoder.offsets(shown)
        starts, ends = [max(0, start - lead) for start in starts], [max(0, end - lead) for end in ends]

        def framed(tokens: Sequence[int]) -> Encoded:
            pieces = list(query.pieces)
            pieces[at] = Piece("tokens", mark="passage", tokens=tuple(tokens))
            share = encoder.max_tokens - least_room(encoder.max_tokens)
            return encoder.encode(Query(query.demos, tuple(pieces)), row, share + len(tokens))

        room = encoder.max_tokens - len(framed(()).ids)
        step = encoder.step(room)
        first, last = _answer_tokens(row, starts, ends)
        windows = []
        for begin in range(0, max(1, len(ids) - room + step), step):
            window = slice(begin, min(begin + room, len(ids)))
            prompt = framed(ids[window])
            size, place = window.stop - window.start, prompt.marks["passage"][0]
            is_labelled = row.get("label") is not None
            gold = [0 if is_labelled else -1] * (size + 1)
            if is_labelled:
                inside = window.start <= first and last < window.stop
                gold[first - window.start + 1 if inside else 0] += 1
                gold[last - window.start + 1 if inside else 0] += 2
            passage = Passage(context, [0, *starts[window]], [0, *ends[window]])
            marks = {**prompt.marks, "slot": [0, *range(place, place + size)]}
            answers = list(row.get("label") or [])
            windows.append(prompt.but(marks=marks, gold=gold, answers=answers, passage=passage))
        return windows


def _answers(value: Any, context: str, where: str, unanswerable: bool) -> tuple[list[str], list[int]]:
    """Texts and starts out of {text: [...], answer_start: [...]}, one answer without the lists, or
    [{text, answer_start}, ...]."""
    if isinstance(value, dict) and not isinstance(value.get("text"), list):
        value = [value] if value.get("text") else []
    if isinstance(value, list) and all(isinstance(answer, dict) for answer in value):
        texts, starts = [answer.get("text") for answer in value], [answer.get("answer_start") for answer in value]
    elif isinstance(value, dict):
        texts, starts = value["text"], value.get("answer_start")
        starts = starts if isinstance(starts, list) else [starts]
    elif base.is_missing(value):
        texts, starts = [], []
    else:
        found = base.shown(value)
        raise UserError(f"{where} has the answers {found}; expected {{text: […], answer_start: […]}}")
    if unanswerable and not base.is_missing(value) and not any(texts or []):
        return [], []
    if not texts or not all(texts):
        raise UserError(
            f"{where} has no answer; if it is hidden, drop the row; if questions may have none (SQuAD 2.0), write "
            "unanswerable: true in the task's label, and its answers as an empty list"
        )
    if len(texts) != len(starts):
        raise UserError(f"{where} has {len(texts)} answers and {len(starts)} starts; expected one start an answer")
    characters: list[int] = []
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"{where} has the answer {base.shown(text)}; expected a text")
        if isinstance(start, float) and start.is_integer():  # pandas makes numbers of a column with gaps such
            start = int(start)
        if not isinstance(start, int) or isinstance(start, bool):
            found = base.shown(start)
            raise UserError(f'{where} has the answer "{text}" at answer_start {found}; expected a character\'s number')
        # startswith would count a negative start from the end
        if start < 0 or not context.startswith(text, start):
            there = context[start : start + len(text)] if start >= 0 else ""
            raise UserError(f'{where} has the answer "{text}" at character {start}; its context holds "{there}" there')
        characters.append(start)
    return list(texts), characters


def _answer_tokens(row: Mapping[str, Any], starts: Sequence[int], ends: Sequence[int]) -> tuple[int, int]:
    """First and last token of the row's first answer; -1 where it has none, or no token stands for it."""
    if not row.get("label"):
        return -1, -1
    begin = row["starts"][0]
    end = begin + len(row["label"][0])
    spans = enumerate(zip(starts, ends, strict=True))
    inside = [i for i, (start, stop) in spans if stop > begin and start < end]
    return (inside[0], inside[-1]) if inside else (-1, -1)
