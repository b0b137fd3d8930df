"""Which rows a run trains, selects and tests on: protocols, k-shot sampling by hashed row ids, the sample manifest.

A row's rank is a hash of (sample seed, purpose, row id): it depends neither on the order of rows nor on how many
workers or which interpreter draws it, and translations (rows with the same id) are drawn together in every language.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.data.content import CHUNK, content_hash
from raypft.errors import UserError, nearest

compute: Any = pa_compute  # its functions are made at import
LISTED = 2000
"""Rows of a role that a manifest lists; of more it has a hash and the rule that chose them."""
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
    rules: how the rows of a role were chosen, in words.
    """

    train: pa.Table
    dev: pa.Table | None
    test: pa.Table
    demos: pa.Table | None
    notes: tuple[str, ...] = ()
    stream: Stream | None = None
    commits: tuple[str, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        """Row ids per role (of more than LISTED rows a hash over them and the rule), and a hash over ids, contents and
        commits; two results compare only if their hashes agree."""
        roles = {role: getattr(self, role) for role in ("train", "dev", "test", "demos")}
        hashes = {role: content_hash(table) for role, table in roles.items()}
        sizes = {role: 0 if table is None else len(table) for role, table in roles.items()}
        ids: dict[str, Any] = {}
        for role, table in roles.items():
            told = {"hash": hashes[role], "rule": self.rules.get(role, "")}
            ids[role] = [] if table is None else _keys(table) if sizes[role] <= LISTED else told
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
    notes, rules = [], {"dev": "all rows of the validation split", "test": "all rows of the test split"}
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
        rules["dev"] = _rule(f"{size} train rows a language", seed, "held out")
    if dev_rows is not None and dev == "k_shot" and shots is not None:
        dev_rows = _per_class(dev_rows, languages, labels, shots, seed, "dev")
        rules["dev"] += _rule(f"; {shots} of them a class and language", seed, "dev")
    elif dev_rows is not None and dev_limit is not None:
        dev_rows = _limit(dev_rows, dev_limit, seed, "dev")
        rules["dev"] += _rule(f"; {dev_limit} of them a language", seed, "dev")
    shown = None
    taken = {} if dev_rows is None or pool is train else {"dev": dev_rows}
    if demos:
        shown = _per_class(pool, languages, labels, demos, seed, "demos", taken)
        pool, taken = _without(pool, shown), {**taken, "demonstrations": shown}
        rules["demos"] = _rule(f"{demos} train rows a class and language", seed, "demos")
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
    asked = "all train rows" if shots is None else f"{shots} train rows a class and language"
    rules["train"] = _rule(f"{asked} without ids of dev or demonstrations", seed, "train")
    test = dev_rows if rule.tests_dev else test
    if test is None:
        raise UserError("dev.rows: found none; this protocol tests what it holds out; leave dev.rows out")
    rules["test"] = rules["dev"] if rule.tests_dev else rules["test"]
    if test_limit is not None:
        test = _limit(test, test_limit, TEST_SEED, "test")
        rules["test"] += _rule(f"; {test_limit} of them a language", TEST_SEED, "test")
    return Sample(chosen, dev_rows, test, shown, tuple(notes), rules=rules)


def _rule(what: str, seed: int, purpose: str) -> str:
    """What rows were chosen, and by which hash (see `_hashes`) they are ordered."""
    return f'{what}, by sha256 of "{seed}", "{purpose}" and id with 0x1f between'


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _keys(table: pa.Table) -> list[str]:
    columns = (table["language"].to_pylist(), table["id"].to_pylist())
    return [f"{language}/{row_id}" for language, row_id in zip(*columns, strict=True)]


def _hashes(table: pa.Table, seed: int, purpose: str) -> np.ndarray:
    """The rank of each row, 32 bytes, [rows]."""
    begin, sha256, ranks = f"{seed}\x1f{purpose}\x1f".encode(), hashlib.sha256, bytearray()
    for batch in table.select(["id"]).to_batches(max_chunksize=CHUNK):
        ranks += b"".join([sha256(begin + row_id).digest() for row_id in batch["id"].cast(pa.binary()).to_pylist()])
    return np.frombuffer(ranks, "S32")


def _places(column: pa.ChunkedArray) -> np.ndarray:
    """The place of each row's text among all that there are, sorted, [rows]."""
    texts = sorted(column.unique().to_pylist())
    return compute.index_in(column, pa.array(texts, column.type)).to_numpy()


def _order(table: pa.Table, seed: int, purpose: str) -> np.ndarray:
    """The numbers of the rows in hashed order, languages one after the other within an id, then labels, [rows]."""
    hashes, languages = _hashes(table, seed, purpose), _places(table["language"])
    first = hashes.view(">u8")[::4].astype(np.uint64)  # the order of the whole unless two share it, and quicker
    order = np.lexsort((languages, first))
    before, after = order[:-1], order[1:]
    alike = np.flatnonzero(first[before] == first[after])
    before, after = before[alike], after[alike]
    if ((languages[before] == languages[after]) | (hashes[before] != hashes[after])).any():
        labels = pa.chunked_array([pa.array(map(str, table["label"].to_pylist()), pa.string())])
        order = np.lexsort((_places(labels), languages, hashes))
    return order


def _sorted(table: pa.Table, seed: int, purpose: str) -> pa.Table:
    """The rows in hashed order, see `_order`."""
    return table.take(_order(table, seed, purpose))


def _first(groups: np.ndarray, count: int) -> np.ndarray:
    """Where the first `count` members of each group stand, group by group."""
    by_group = np.argsort(groups, kind="stable")
    begins = np.searchsorted(groups[by_group], groups[by_group])
    return by_group[np.arange(len(groups)) - begins < count]


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
    order = _order(table, seed, purpose)
    number, label = (
        compute.fill_null(compute.index_in(table[name], pa.array(known, pa.string())), -1).to_numpy()[order]
        for name, known in (("language", languages), ("label", labels))
    )
    known = (number >= 0) & (label >= 0)
    order, classes = order[known], (number * len(labels) + label)[known]
    found = np.bincount(classes, minlength=len(languages) * len(labels))
    short = np.flatnonzero(found < count)
    if len(short):
        language, name = languages[short[0] // len(labels)], labels[short[0] % len(labels)]
        left = found[short[0]]
        fewer = f"; ask for {min(found)} or fewer" if purpose == "train" and min(found) else ""
        raise UserError(
            f'shots: {purpose} asks for {count} rows of "{name}" in {language}; only {left} are left'
            + (_taken(taken, language, name) or fewer)
        )
    return table.take(order[_first(classes, count)])


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
    order = _order(table, seed, purpose)
    return table.take(order[np.sort(_first(_places(table["language"])[order], count))])


def _split_off(table: pa.Table, count: int, seed: int) -> tuple[pa.Table, pa.Table]:
    held = _limit(table, count, seed, "held out")
    return held, _without(table, held)


def _without(table: pa.Table, other: pa.Table) -> pa.Table:
    """The rows whose id is not in `other`: a translation of a held-out row is held out too."""
    known = compute.is_in(table["id"], other["id"].combine_chunks())
    return table.filter(compute.invert(known))
