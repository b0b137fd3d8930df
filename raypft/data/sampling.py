"""Which rows a run trains, selects and tests on: protocols, k-shot sampling by hashed row ids, the sample manifest.

A row's rank is a hash of (sample seed, purpose, row id): it depends neither on the order of rows nor on how many
workers or which interpreter draws it, and translations (rows with the same id) are drawn together in every language.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.errors import UserError, nearest

DevRows = Literal["full", "k_shot", "none"]
TEST_SEED = 0
"""Test rows are limited with one seed for ever: every seed and method is tested on the same rows."""


@dataclass(frozen=True)
class Protocol:
    """Sizes and roles of train, dev and test.

    dev: how many rows select the epoch; dev_from_train: they are held out of train although a validation split exists;
    dev_limit, test_limit: at most so many rows a language; dev_as_test: what is held out is no more than there is to
    test; dev_share: so much of train is held out, 0 to 1; tests_dev: what is held out is also what is tested, for data
    that is not there to be tested on; sample_per_seed: each seed draws a sample of its own.
    """

    about: str
    dev: DevRows
    dev_from_train: bool = False
    dev_limit: int | None = None
    test_limit: int | None = None
    sample_per_seed: bool = False
    dev_share: float | None = None
    tests_dev: bool = False
    dev_as_test: bool = False


PROTOCOLS = {
    "fixed": Protocol("ours: k per class or all rows, the validation split, the whole test split", "full"),
    "profit": Protocol(
        "Ma et al. 2023: k per class drawn per seed, full English dev set", "full", sample_per_seed=True
    ),
    "zs2021": Protocol("Zhao & Schuetze 2021: k per class, a dev set of the same k", "k_shot"),
    "gnnavi": Protocol(
        "Yuan et al. 2024: k per class per seed, up to 1,000 test rows, as many train rows as dev",
        "full",
        True,
        1000,
        1000,
        True,
        dev_as_test=True,
    ),
    "ticket_search": Protocol(
        "LTP section 3.1: a tenth of the text is held out; it selects the epoch and is reported",
        "full",
        True,
        dev_share=0.1,
        tests_dev=True,
    ),
}


class Stream(typing.Protocol):
    """Train rows that are read as they are needed, as far as a sample must know them."""

    @property
    def fingerprint(self) -> str:
        """A hash of what there is to stream: 16 hex digits."""
        ...

    @property
    def rows(self) -> int:
        """Rows an epoch has."""
        ...


@dataclass(frozen=True)
class Sample:
    """The rows of one cell; tables have the columns of `sources.read_split`.

    dev, demos: None where there are none; notes: what the draw did that a reader of the result must know.
    stream: where train rows are streamed, what there is; `train` then holds the first of each language.
    commits: the data sets on the hub that the rows are of, each with its commit.
    """

    train: pa.Table
    dev: pa.Table | None
    test: pa.Table
    demos: pa.Table | None
    notes: tuple[str, ...] = ()
    stream: Stream | None = None
    commits: tuple[str, ...] = ()

    def manifest(self) -> dict[str, Any]:
        """Row ids per role and a hash over ids, contents and commits; two results compare only if their hashes
        agree."""
        roles = {role: getattr(self, role) for role in ("train", "dev", "test", "demos")}
        ids = {role: [] if table is None else _keys(table) for role, table in roles.items()}
        hashes = {role: _content_hash(table) for role, table in roles.items()}
        sizes = {role: len(keys) for role, keys in ids.items()}
        if self.stream is not None:
            ids["train"], hashes["train"], sizes["train"] = [], self.stream.fingerprint, self.stream.rows
        facts = {**hashes, "commits": self.commits} if self.commits else hashes
        whole = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return {"hash": whole, "test_hash": hashes["test"], "notes": list(self.notes), "sizes": sizes, "ids": ids}


def protocol(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        UserError: unknown name; the nearest is named.
    """
    if name not in PROTOCOLS:
        raise UserError(f'protocol: "{name}" is unknown; {nearest(name, PROTOCOLS)}')
    return PROTOCOLS[name]


def draw(
    train: pa.Table,
    validation: pa.Table | None,
    test: pa.Table | None,
    *,
    labels: list[str],
    rule: Protocol,
    shots: int | None,
    demos: int,
    seed: int,
    dev: DevRows | None = None,
    dev_limit: int | None = None,
    test_limit: int | None = None,
) -> Sample:
    """Draw the sample of a cell.

    Args:
        labels: the classes; empty where rows have none (tags, spans, texts), shots and demos then count rows a
            language.
        rule: the sizes and roles.
        shots: rows a class and language for training, None for all; demos: demonstrations a class, taken from train
            first.
        seed: the sample seed.
        dev: replaces the protocol's; dev_limit, test_limit: rows per language, the smaller of this and the protocol's.

    Raises:
        UserError: a class has fewer rows than asked for, or nothing is left to train on or to be tested.
    """
    notes = []
    dev = dev or rule.dev
    dev_limit, test_limit = _least(dev_limit, rule.dev_limit), _least(test_limit, rule.test_limit)
    pool, dev_rows = train, validation
    languages = sorted(train["language"].unique().to_pylist())
    if dev == "none":
        dev_rows = None
    elif validation is None or rule.dev_from_train:
        share = len(train) // max(1, len(train["language"].unique()))
        size = max(1, round(rule.dev_share * share)) if rule.dev_share else min(dev_limit or 1000, share // 5)
        if rule.dev_as_test and test is not None:
            size = min(size, len(test) // len(test["language"].unique()))
        dev_rows, pool = _split_off(train, size, seed)
        notes.append(f"dev: {len(dev_rows)} rows held out of train by sample seed {seed}")
    if dev_rows is not None and dev == "k_shot" and shots is not None:
        dev_rows = _per_class(dev_rows, languages, labels, shots, seed, "dev")
    elif dev_rows is not None and dev_limit is not None:
        dev_rows = _limit(dev_rows, dev_limit, seed, "dev")
    shown = None
    taken = {} if dev_rows is None or pool is train else {"dev": dev_rows}
    if demos:
        shown = _per_class(pool, languages, labels, demos, seed, "demos", taken)
        pool, taken = _without(pool, shown), {**taken, "demonstrations": shown}
    chosen = (
        _sorted(pool, seed, "train")
        if shots is None
        else _per_class(pool, languages, labels, shots, seed, "train", taken)
    )
    if not len(chosen):
        raise UserError(
            f"data: found {len(train)} train rows, of which dev and demonstrations leave none, as rows of one id stay "
            "together; give more rows, or ids of their own"
        )
    test = dev_rows if rule.tests_dev else test
    if test is None:
        raise UserError("dev.rows: found none; this protocol tests what it holds out; leave dev.rows out")
    if test_limit is not None:
        test = _limit(test, test_limit, TEST_SEED, "test")
    return Sample(chosen, dev_rows, test, shown, tuple(notes))


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _content_hash(table: pa.Table | None) -> str:
    digest = hashlib.sha256()
    for row in [] if table is None else table.to_pylist():
        digest.update(json.dumps(sorted(row.items()), ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def _keys(table: pa.Table) -> list[str]:
    columns = (table["language"].to_pylist(), table["id"].to_pylist())
    return [f"{language}/{row_id}" for language, row_id in zip(*columns, strict=True)]


def _rank(seed: int, purpose: str, row_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{purpose}\x1f{row_id}".encode()).digest()


def _sorted(table: pa.Table, seed: int, purpose: str) -> pa.Table:
    """The rows in hashed order, languages one after the other within an id."""
    languages, ids = (table[name].to_pylist() for name in ("language", "id"))
    labels = [str(label) for label in table["label"].to_pylist()]
    order = sorted(range(len(table)), key=lambda i: (_rank(seed, purpose, ids[i]), languages[i], labels[i]))
    return table.take(pa.array(order, pa.int64()))


def _per_class(
    table: pa.Table,
    languages: list[str],
    labels: list[str],
    count: int,
    seed: int,
    purpose: str,
    taken: Mapping[str, pa.Table] = types.MappingProxyType({}),
) -> pa.Table:
    """So many rows of each class and language.

    Args:
        taken: rows that were taken out of the table before, by their role, for the message.
    """
    if not labels:
        return _limit(table, count, seed, purpose)
    ordered = _sorted(table, seed, purpose)
    chosen: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, place in enumerate(zip(ordered["language"].to_pylist(), ordered["label"].to_pylist(), strict=True)):
        if len(chosen[place]) < count:
            chosen[place].append(i)
    indices = []
    for language in languages:
        for label in labels:
            of_class = chosen.get((language, label), [])
            if len(of_class) < count:
                raise UserError(
                    f'shots: {purpose} asks for {count} rows of "{label}" in {language}; only {len(of_class)} are left'
                    + _taken(taken, language, label)
                )
            indices += of_class
    return ordered.take(pa.array(indices, pa.int64()))


def _taken(taken: Mapping[str, pa.Table], language: str, label: str) -> str:
    """What else took rows of a class, and what gives them back."""
    counts = {}
    for role, table in taken.items():
        places = zip(table["language"].to_pylist(), table["label"].to_pylist(), strict=True)
        counts[role] = sum(place == (language, label) for place in places)
    told = " and ".join(f"{role} took {count} of them" for role, count in counts.items() if count)
    if not told:
        return ""
    instead = "dev.rows=none, a smaller dev.limit or a validation file" if counts.get("dev") else "fewer demos"
    return f" ({told}); ask for fewer shots, or give {instead}"


def _limit(table: pa.Table, count: int, seed: int, purpose: str) -> pa.Table:
    ordered = _sorted(table, seed, purpose)
    taken: dict[str, int] = defaultdict(int)
    indices = []
    for i, language in enumerate(ordered["language"].to_pylist()):
        if taken[language] < count:
            indices.append(i)
            taken[language] += 1
    return ordered.take(pa.array(indices, pa.int64()))


def _split_off(table: pa.Table, count: int, seed: int) -> tuple[pa.Table, pa.Table]:
    held = _limit(table, count, seed, "held out")
    return held, _without(table, held)


def _without(table: pa.Table, other: pa.Table) -> pa.Table:
    """The rows whose id is not in `other`: a translation of a held-out row is held out too."""
    known = pa_compute.is_in(table["id"], other["id"].combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]  # made at import
    return table.filter(pa_compute.invert(known))  # pyright: ignore[reportAttributeAccessIssue]  # made at import
