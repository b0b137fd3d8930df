"""Rows become encoded prompts: the one place where task, pattern, demonstrations and backbone meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from raypft.backbones.base import Backbone
from raypft.backbones.text import PromptError, PromptTokenizer
from raypft.batch import Encoded, Passage
from raypft.config.compatibility import MARKUP, check_job
from raypft.config.job import Job, part_config
from raypft.data.sampling import Sample
from raypft.errors import UserError
from raypft.readouts.base import Config, Readout
from raypft.tasks.prompts import Demonstration, Piece, Query, first_word, queries, render
from raypft.tasks.task import Pattern, Task, load_task

ROLES = ("train", "dev", "test")
UNLIMITED = 1 << 30
ENCODING = 1
"""Raised when a change alters prompts or their tokens; part of the cell key."""
KEY_OF = {"length": "train.max_tokens", "slot": "pattern", "demonstrations": "demos"}
"""What may be wrong with a prompt to the key that mends it."""


@dataclass(frozen=True)
class Encoder:
    """Encodes rows of one job; `demos` are those of one cell."""

    task: Task
    pattern: Pattern
    text: PromptTokenizer
    soft_tokens: int
    max_tokens: int
    readout: type[Readout]
    readout_config: Config
    demos: tuple[Demonstration, ...] = ()

    @classmethod
    def of(cls, job: Job, text: PromptTokenizer, demos: pa.Table | None = None) -> Encoder:
        """The encoder of a job, with a cell's demonstrations."""
        task = load_task(job.task)
        _, config = part_config(job.method, "method")
        rows = [] if demos is None else demos.to_pylist()
        shown = tuple(Demonstration(row, row["label"], row["language"]) for row in _by_class(rows, task.label.names))
        return cls(
            task,
            task.pattern(job.pattern),
            text,
            config.soft_tokens,
            job.train.max_tokens,
            *part_config(job.readout, "readout"),
            shown,
        )

    def queries(self, row: Mapping[str, Any]) -> list[Query]:
        """The rendered prompts of a row, before they are cut to size."""
        return queries(self.task, self.pattern, row, str(row["language"]), self.soft_tokens, self.demos)

    def _render(self, row: Mapping[str, Any]) -> Query:
        return render(self.task, self.pattern, row, str(row["language"]), self.soft_tokens, self.demos)

    def __call__(self, row: Mapping[str, Any]) -> list[Encoded]:
        """The prompts of a row, its parts in order."""
        if self.task.kind == "span":
            parts = self._windows(row)
        elif self.task.kind == "tags":
            parts = self._tagged(row)
        else:
            names = self.task.label.names
            gold = [names.index(row["label"])] if names and row.get("label") else [-1]
            parts = [
                replace(
                    self._encode(self._render(row), row),
                    gold=gold,
                    answers=[self._word(row, str(row.get("label") or ""))],
                )
            ]
        wordings = ["", *self.pattern.by_language]
        language = str(row["language"])
        wording = wordings.index(language) if language in wordings else 0
        parts = [replace(part, wording=wording, part=number) for number, part in enumerate(parts)]
        return [self.readout.prepare(self.readout_config, part, self.text) for part in parts]

    def _encode(self, query: Query, row: Mapping[str, Any], max_tokens: int | None = None) -> Encoded:
        name, language = f"{row['language']}/{row['id']}", str(row["language"])
        try:
            return self.text.encode(query, name, language, max_tokens or self.max_tokens)
        except PromptError as error:
            raise UserError(f"{KEY_OF[error.about]}: {error}") from None

    def _tagged(self, row: Mapping[str, Any]) -> list[Encoded]:
        words = row[self.task.words]
        tags = row.get("label") or [None] * len(words)
        gold = [-1 if tag is None else self.task.label.names.index(tag) for tag in tags]
        if "{token}" in self.pattern.text:
            asked = self.queries(row)
            return [
                replace(self._encode(query, row), gold=[g], answers=[self._word(row, tag or "")])
                for query, g, tag in zip(asked, gold, tags, strict=True)
            ]
        return [
            replace(
                self._encode(self._render({**row, self.task.words: words[start:end]}), row),
                gold=gold[start:end],
                answers=[f"{tag or ''}: {word}" for tag, word in zip(tags[start:end], words[start:end], strict=True)],
            )
            for start, end in self._chunks(row, words)
        ]

    def _word(self, row: Mapping[str, Any], label: str) -> str:
        """The text that stands for a label: its word where the pattern has one."""
        verbalizer = self.pattern.wording(str(row["language"])).verbalizer or {}
        return first_word(verbalizer.get(label, label))

    def _chunks(self, row: Mapping[str, Any], words: Sequence[str]) -> list[tuple[int, int]]:
        """Sentences too long for one prompt are cut between words, as XTREME's preprocessing does."""

        def size(word: str, blank: str) -> int:
            return max(1, len(self.text.tokenize(blank + word)))

        query = self._render({**row, self.task.words: words[:1]})
        # a part's first word stands after the pattern's own blank, if it has one
        blank = next(piece.text for piece in query.pieces if piece.mark == "slot").removesuffix(words[0])
        room = self.max_tokens - (len(self._encode(query, row, UNLIMITED).ids) - size(words[0], blank))
        chunks, start, used = [], 0, 0
        for i, word in enumerate(words):
            if i > start and used + size(word, " ") > room:
                chunks.append((start, i))
                start, used = i, 0
            used += size(word, " " if i > start else blank)
        return [*chunks, (start, len(words))]

    def _windows(self, row: Mapping[str, Any]) -> list[Encoded]:
        """A passage in windows that overlap; slot 0 is the prompt's first token, which stands for "no answer here".

        At most half of a window goes to the question, the same part of it in all. Gold of a slot: 1 where the answer starts
        + 2 where it ends.
        """
        query, context = self._render(row), row[self.task.fields["context"]]
        at = next(i for i, piece in enumerate(query.pieces) if piece.mark == "passage")
        lead = len(query.pieces[at].text) - len(query.pieces[at].text.lstrip()) - (len(context) - len(context.lstrip()))
        ids, starts, ends = self.text.offsets(query.pieces[at].text)
        starts, ends = [max(0, start - lead) for start in starts], [max(0, end - lead) for end in ends]

        def framed(tokens: Sequence[int]) -> Encoded:
            pieces = list(query.pieces)
            pieces[at] = Piece("tokens", mark="passage", tokens=tuple(tokens))
            return self._encode(Query(query.demos, tuple(pieces)), row, self.max_tokens // 2 + len(tokens))

        room = self.max_tokens - len(framed(()).ids)
        step = min(room, self.readout_config.stride or room)
        first, last = _answer_tokens(row, starts, ends)
        windows = []
        for begin in range(0, max(1, len(ids) - room + step), step):
            window = slice(begin, min(begin + room, len(ids)))
            part = framed(ids[window])
            size, place = window.stop - window.start, part.marks["passage"][0]
            gold = [0 if row.get("label") else -1] * (size + 1)
            if row.get("label"):
                inside = window.start <= first and last < window.stop
                gold[first - window.start + 1 if inside else 0] += 1
                gold[last - window.start + 1 if inside else 0] += 2
            passage = Passage(context, [0, *starts[window]], [0, *ends[window]])
            marks = {**part.marks, "slot": [0, *range(place, place + size)]}
            windows.append(replace(part, marks=marks, gold=gold, answers=list(row.get("label") or []), passage=passage))
        return windows


def _answer_tokens(row: Mapping[str, Any], starts: Sequence[int], ends: Sequence[int]) -> tuple[int, int]:
    """First and last token of the row's first answer; -1 where it has none, or no token stands for it."""
    if not row.get("label"):
        return -1, -1
    begin = row["starts"][0]
    end = begin + len(row["label"][0])
    inside = [i for i, (start, stop) in enumerate(zip(starts, ends, strict=True)) if stop > begin and start < end]
    return (inside[0], inside[-1]) if inside else (-1, -1)


def _by_class(rows: list[dict], names: Sequence[str]) -> list[dict]:
    """One demonstration of each class after the other, in label order, then the next round."""
    of = {name: [row for row in rows if row["label"] == name] for name in names}
    rounds = max((len(own) for own in of.values()), default=0)
    return [of[name][i] for i in range(rounds) for name in names if i < len(of[name])]


def check_fit(job: Job, backbone: Backbone) -> None:
    """What job, task and backbone must agree on, known without weights.

    Raises:
        UserError: method, family, readout and kind (matrix.check_job), pattern and readout, marks, demonstrations or layer do not fit together; label words.
    """
    method, method_config = part_config(job.method, "method")
    readout, readout_config = part_config(job.readout, "readout")
    task = load_task(job.task)
    pattern = task.pattern(job.pattern)
    check_job(job, backbone.family)
    for markup in [markup for mark in method.marks for markup in MARKUP[mark]]:
        if markup not in pattern.text:
            raise UserError(
                f"pattern: method {job.method['name']} needs {markup}; pattern {job.pattern} of {task.name} has none"
            )
    if "<soft>" in pattern.text and not method_config.soft_tokens:
        raise UserError(
            f"pattern: {job.pattern} has <soft>, but method {job.method['name']} has no soft tokens; use method=soft_prompt or another pattern"
        )
    if job.demos and "<demos>" not in pattern.text:
        raise UserError(f"demos: found {job.demos}; pattern {job.pattern} of {task.name} has no <demos>")
    if job.demos and not backbone.text.takes_demos:
        raise UserError(
            f"demos: {job.backbone} is a {backbone.family} model and takes no demonstrations; set demos=0 or use a causal backbone"
        )
    if "demo_label" in method.marks and not job.demos:
        raise UserError(f"demos: method {job.method['name']} needs demonstrations; set demos=1")
    limit, taken = backbone.num_positions, method_config.positions_taken
    if limit is not None and job.train.max_tokens + taken > limit:
        left = (
            f"; method {job.method['name']} takes {taken} of them, which leaves {max(0, limit - taken)} for the text"
            if taken
            else ""
        )
        raise UserError(f"train.max_tokens: found {job.train.max_tokens}; {job.backbone} has {limit} positions{left}")
    method(method_config, backbone)
    if readout.needs_slot:
        readout(readout_config, task, pattern, backbone)


def label_distribution(task: Task, rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Language to label or tag to count; empty where answers are texts."""
    found: dict[str, dict[str, int]] = {}
    for row in rows if task.label.names else ():
        own = found.setdefault(row["language"], {})
        for label in row["label"] if task.kind == "tags" else [row["label"]]:
            own[label] = own.get(label, 0) + 1
    return found


def encode_sample(job: Job, text: PromptTokenizer, sample: Sample) -> dict[str, list[Encoded]]:
    """Role to encoded prompts, in this process."""
    encoder = Encoder.of(job, text, sample.demos)
    return {
        role: [prompt for row in table.to_pylist() for prompt in encoder(row)]
        for role in ROLES
        if (table := getattr(sample, role)) is not None
    }


def prompts_an_epoch(sample: Sample, encoder: Encoder, looked_at: int) -> float:
    """Training prompts, estimated from some rows; of a stream the rows, which is what its steps count."""
    if sample.stream is not None:
        return sample.stream.rows
    some = sample.train.slice(0, looked_at).to_pylist()
    return len(sample.train) * sum(len(encoder(row)) for row in some) / len(some)


def to_record(prompt: Encoded) -> dict:
    """An encoded prompt as an Arrow row."""
    record = asdict(prompt)
    record["marks"] = list(prompt.marks.items())
    return record


def from_record(record: dict) -> Encoded:
    """The encoded prompt of an Arrow row."""
    passage = None if record["passage"] is None else Passage(**record["passage"])
    return Encoded(**{**record, "marks": dict(record["marks"]), "passage": passage})


INTS = pa.list_(pa.int32())
RECORD = pa.schema(
    [
        ("key", pa.string()),
        ("language", pa.string()),
        ("ids", INTS),
        ("segments", INTS),
        ("marks", pa.map_(pa.string(), INTS)),
        ("gold", INTS),
        ("wording", pa.int32()),
        ("part", pa.int32()),
        ("demo_tokens", pa.int32()),
        ("target", INTS),
        ("answers", pa.list_(pa.string())),
        ("passage", pa.struct([("text", pa.string()), ("starts", INTS), ("ends", INTS)])),
    ]
)
"""The Arrow schema of encoded prompts."""
