"""Samples: exact sizes, no dependence on order or interpreter, roles that share no row, a hash of what was drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute
import pytest

from raypft.config.load import make_job
from raypft.data import sampling
from raypft.data.sampling import LISTED, PROTOCOLS, Protocol, Sample, draw, protocol
from raypft.errors import UserError

LABELS = ["no", "maybe", "yes"]
ROLES = ("train", "dev", "test", "demos")


def rows(prefix: str, count: int = 20, languages: tuple[str, ...] = ("en", "de")) -> pa.Table:
    """`count` rows a class and language; the same id in two languages is a translation."""
    made = [
        {
            "id": f"{prefix}-{label}-{i}",
            "language": language,
            "label": label,
            "text": f"{prefix} {label} {i} {language}",
        }
        for i, label, language in itertools.product(range(count), LABELS, languages)
    ]
    return pa.Table.from_pylist(made)


def shuffled(table: pa.Table) -> pa.Table:
    """The same rows in another order."""
    order = list(range(len(table)))
    random.Random(7).shuffle(order)
    return table.take(order)


TRAIN, DEV, TEST = rows("train"), rows("dev"), rows("test")


def sample(
    train=TRAIN,
    validation=DEV,
    test=TEST,
    rule: Protocol | str = "fixed",
    shots: int | None = 4,
    demos=0,
    seed=0,
    **more,
) -> Sample:
    """A sample with small numbers where nothing else is said."""
    rule = protocol(rule) if isinstance(rule, str) else rule
    return draw(train, validation, test, labels=LABELS, rule=rule, shots=shots, demos=demos, seed=seed, **more)


def counts(table: pa.Table) -> dict[tuple[str, str], int]:
    """(language, label) to number of rows."""
    return dict(Counter(zip(table["language"].to_pylist(), table["label"].to_pylist(), strict=True)))


def ids(table: pa.Table, language: str | None = None) -> set[str]:
    """Row ids, of one language if named."""
    return {row["id"] for row in table.to_pylist() if language in (None, row["language"])}


def each(count: int) -> dict[tuple[str, str], int]:
    """`count` for every language and class."""
    return dict.fromkeys(itertools.product(("en", "de"), LABELS), count)


def test_exactly_k_rows_of_every_class_and_language():
    drawn = sample(shots=4, demos=2)
    assert (counts(drawn.train), counts(drawn.demos)) == (each(4), each(2))


def test_no_shots_means_every_row_once():
    assert sorted(sample(shots=None).train.to_pylist(), key=str) == sorted(TRAIN.to_pylist(), key=str)


def test_translations_are_drawn_together():
    drawn = sample(shots=4, demos=1)
    for role in (drawn.train, drawn.demos):
        assert ids(role, "en") == ids(role, "de")


@pytest.mark.parametrize("shots", [2, None])
def test_translations_of_held_out_rows_and_demonstrations_leave_train_where_languages_have_different_rows(shots):
    """German has every third row of the English ones, and others of its own."""
    german = [row for i, row in enumerate(rows("train", languages=("de",)).to_pylist()) if i % 3 == 0]
    train = pa.Table.from_pylist([*rows("train", languages=("en",)).to_pylist(), *german])
    train = pa.concat_tables([train, rows("more", 10, languages=("de",))])
    drawn = sample(train, None, shots=shots, demos=2, dev_limit=9)
    assert drawn.dev is not None
    assert drawn.demos is not None
    taken = ids(drawn.dev) | ids(drawn.demos)
    assert not taken & ids(drawn.train)
    assert ids(drawn.dev, "en") & ids(train, "de"), "some held-out rows have a translation"


def test_another_seed_draws_other_rows_but_tests_on_the_same():
    first, second = sample(seed=0, test_limit=5), sample(seed=1, test_limit=5)
    assert ids(first.train) != ids(second.train)
    assert first.test == second.test


@pytest.mark.parametrize("shots", [4, None])
def test_the_order_of_rows_does_not_matter(shots):
    """Also for rows without an id of their own, where the same text under two labels has one id."""
    twice = pa.concat_tables(
        [
            TRAIN,
            pa.Table.from_pylist(
                [{"id": "twin", "language": "en", "label": label, "text": "twin"} for label in ("no", "yes")]
            ),
        ]
    )
    settings = {"rule": "gnnavi", "shots": shots, "demos": 1, "dev_limit": 6, "test_limit": 5}
    first = sample(train=twice, **settings)
    second = sample(train=shuffled(twice), validation=shuffled(DEV), test=shuffled(TEST), **settings)
    assert first.manifest() == second.manifest()


def test_the_interpreters_hash_seed_does_not_matter():
    drawn = "test_sampling.sample(rule='gnnavi', demos=1, dev_limit=6)"
    code = f"import json, test_sampling; print(json.dumps({drawn}.manifest()))"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    printed = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(paths)}
        printed.append(
            subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
    assert printed[0] == printed[1]
    assert json.loads(printed[0])["sizes"]["train"] == 24


@pytest.mark.parametrize("rule", PROTOCOLS)
@pytest.mark.parametrize("validation", [DEV, None])
def test_roles_share_no_id(rule, validation):
    drawn = sample(rule=rule, validation=validation, demos=2, shots=1, dev_limit=15)
    taken = [ids(table) for table in (drawn.train, drawn.dev, drawn.test, drawn.demos)]
    if PROTOCOLS[rule].tests_dev:
        assert taken.pop(2) == taken[1]
    assert sum(map(len, taken)) == len(set().union(*taken))


def test_demonstrations_come_first_so_that_shots_do_not_change_them():
    assert sample(shots=2, demos=1).demos == sample(shots=8, demos=1).demos


@pytest.mark.parametrize(("test_rows", "expected"), [(1, 3), (2, 6), (20, 12)])
def test_gnnavi_holds_out_as_many_rows_as_there_are_to_test(test_rows, expected):
    """3 labels times `test_rows` a language; a fifth of train at most."""
    drawn = sample(rule="gnnavi", test=rows("test", test_rows), shots=2, test_limit=2)
    assert drawn.dev is not None
    assert Counter(drawn.dev["language"].to_pylist()) == {"en": expected, "de": expected}
    limited = sample(rule="gnnavi", test=rows("test", test_rows), shots=2, dev_limit=2).manifest()
    assert limited["sizes"]["dev"] == 4


@pytest.mark.parametrize(("rule", "validation"), [("gnnavi", DEV), ("fixed", None)])
def test_a_dev_set_held_out_of_train_is_named_in_the_manifest(rule, validation):
    drawn = sample(rule=rule, validation=validation, shots=None, dev_limit=6, seed=3)
    assert counts_of_languages(drawn.dev) == {"en": 6, "de": 6}
    assert ids(drawn.dev) | ids(drawn.train) == ids(TRAIN)
    assert drawn.manifest()["notes"] == ["dev: 12 rows held out of train by sample seed 3"]


def test_a_held_out_dev_set_is_at_most_a_fifth_of_train_however_many_languages():
    train = rows("train", count=10, languages=("de", "en", "es", "fr", "ja", "zh"))
    drawn = sample(train=train, validation=None, shots=None)
    assert drawn.dev is not None
    assert len(drawn.dev) == len(train) // 5
    assert len(drawn.train) == len(train) - len(drawn.dev)


@pytest.mark.parametrize(("count", "held"), [(20, 6), (5, 2), (1, 1)])
def test_a_share_of_train_is_held_out_and_tested(count, held):
    """A tenth of the rows of a language, which are three times `count`; 1.5 is 2, and there is one at least."""
    drawn = sample(rows("train", count), rule="ticket_search", shots=None)
    assert counts_of_languages(drawn.dev) == {"en": held, "de": held}
    assert drawn.test == drawn.dev
    limited = sample(rule="ticket_search", shots=None, dev_limit=4)
    assert counts_of_languages(limited.dev) == {"en": 4, "de": 4}
    assert len(limited.train) == len(TRAIN) - 12


@pytest.mark.parametrize(("dev_limit", "train", "held"), [(None, 2000, 1000), (2000, 2000, 1200), (7, 20, 7)])
def test_a_held_out_dev_set_has_a_thousand_rows_a_language_unless_told_otherwise(dev_limit, train, held):
    """And no more than a fifth of train."""
    drawn = sample(rows("train", train, ("en",)), validation=None, shots=None, dev_limit=dev_limit)
    assert counts_of_languages(drawn.dev) == {"en": held}
    expected = "train rows a language, by sha256" + ' of "0", "held out" and id with 0x1f between'
    assert drawn.rules["dev"].startswith(f"{held} {expected}")


def test_a_given_dev_set_is_used_whole_and_needs_no_note():
    drawn = sample()
    assert ids(drawn.dev) == ids(DEV)
    assert drawn.dev is not None
    assert (len(drawn.dev), drawn.notes) == (len(DEV), ())


def test_dev_of_the_same_k_and_no_dev():
    assert counts(sample(rule="zs2021", shots=4).dev) == each(4)
    assert sample(rule="zs2021", dev="none").dev is None


def counts_of_languages(table: pa.Table) -> dict[str, int]:
    """Rows per language."""
    return dict(Counter(table["language"].to_pylist()))


def test_limits_count_rows_per_language():
    drawn = sample(dev_limit=7, test_limit=5)
    assert (counts_of_languages(drawn.dev), counts_of_languages(drawn.test)) == ({"en": 7, "de": 7}, {"en": 5, "de": 5})


def test_the_protocols_limit_holds_beside_the_jobs():
    rule = Protocol("", "full", test_limit=3, dev_limit=4)
    assert counts_of_languages(sample(rule=rule, test_limit=5, dev_limit=9).test) == {"en": 3, "de": 3}
    assert counts_of_languages(sample(rule=rule, test_limit=2, dev_limit=2).dev) == {"en": 2, "de": 2}


def test_more_shots_than_rows_is_an_error_that_says_what_is_left():
    with pytest.raises(UserError) as caught:
        sample(shots=19, demos=2)
    assert str(caught.value) == (
        'shots: train asks for 19 rows of "no" in de; only 18 are left (demonstrations took 2 of them); '
        "ask for fewer shots, or give fewer demos"
    )


def test_more_shots_than_rows_that_nothing_took_is_told_with_how_many_there_are():
    with pytest.raises(UserError, match=r"; only 20 are left; ask for 20 or fewer$"):
        sample(shots=21)


def test_rows_that_dev_was_held_out_of_are_told_where_shots_run_short():
    with pytest.raises(UserError) as caught:
        sample(shots=20, demos=1, validation=None)
    told = re.fullmatch(
        r'shots: train asks for 20 rows of "no" in de; only (\d+) are left \((?:dev took (\d+) and )?'
        r"demonstrations took 1 of them\); ask for fewer shots, or give .*",
        str(caught.value).replace(" of them and", " and"),
    )
    assert told is not None, str(caught.value)
    left, held = int(told[1]), int(told[2] or 0)
    assert left + held + 1 == 20


def test_a_language_or_class_without_any_row_is_an_error_too():
    with pytest.raises(UserError, match=r'^shots: train asks for 4 rows of "maybe" in de; only 0 are left$'):
        sample(train=TRAIN.filter(pa_compute.field("label") != "maybe"))
    with pytest.raises(UserError, match=r"^shots: train asks for 4 rows .* only 0 are left"):
        sample(train=rows("train", count=1, languages=("de",)), demos=1)


def test_rows_of_one_id_that_are_all_held_out_leave_none_to_train_on():
    alike = pa.Table.from_pylist([{**row, "id": "same"} for row in TRAIN.to_pylist()])
    with pytest.raises(UserError, match=r"^data: found 120 train rows, of which dev and demonstrations leave none, "):
        sample(train=alike, validation=None, shots=None)
    assert len(sample(train=alike, validation=None, shots=None, dev="none").train) == 120


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(UserError, match=r'^protocol: "zs2012" is unknown; did you mean "zs2021"\?'):
        protocol("zs2012")


def test_the_manifest_hash_is_stable_and_sees_content_role_and_order():
    drawn = sample(demos=1)
    manifest = drawn.manifest()
    assert manifest == sample(demos=1).manifest()
    assert manifest["sizes"] == {"train": 24, "dev": 120, "test": 120, "demos": 6}
    without = sample(dev="none").manifest()
    assert (without["sizes"], without["ids"]["dev"]) == ({"train": 24, "dev": 0, "test": 120, "demos": 0}, [])
    edited = drawn.train.set_column(3, "text", pa.array(["edited", *drawn.train["text"].to_pylist()[1:]]))
    assert drawn.demos is not None
    reversed_demos = drawn.demos.take(list(range(len(drawn.demos)))[::-1])
    changed = [
        Sample(edited, drawn.dev, drawn.test, drawn.demos),
        Sample(drawn.train, drawn.dev, drawn.test, reversed_demos),
        Sample(drawn.train, drawn.test, drawn.dev, drawn.demos),
        Sample(drawn.train, None, drawn.test, drawn.demos),
    ]
    assert len({manifest["hash"], *(other.manifest()["hash"] for other in changed)}) == 5
    assert changed[0].manifest()["test_hash"] == manifest["test_hash"] != changed[2].manifest()["test_hash"]


def test_the_manifest_hash_is_of_the_roles_and_of_the_commits_of_the_hub_where_rows_are_from_there():
    """What does not come from the hub has the hash that it had before commits were known."""
    drawn = sample()
    roles = ("train", "dev", "test", "demos")
    facts = {role: sampling.content_hash(getattr(drawn, role)) for role in roles}
    for commits in ((), ("owner/data@abc",)):
        told = {**facts, "commits": commits} if commits else facts
        expected = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        assert dataclasses.replace(drawn, commits=commits).manifest()["hash"] == expected


@pytest.mark.parametrize(
    ("rule", "drawn"), [("fixed", [5, 5, 5]), ("zs2021", [5, 5, 5]), ("profit", [5, 6, 47]), ("gnnavi", [5, 6, 47])]
)
def test_a_protocol_says_whether_each_seed_draws_its_own_sample(rule, drawn):
    values = {
        "task": "sst2",
        "pattern": "gnnavi",
        "backbone": "gpt2",
        "method": "full",
        "protocol": rule,
        "sample_seed": 5,
        "seeds": [0, 1, 42],
    }
    job = make_job(values)
    assert [job.sample_seed_of(seed) for seed in job.job.seeds] == drawn


def test_rows_come_by_the_hash_of_seed_purpose_and_id():
    """The rule in Python's words; translations have one hash, and the same row may stand there under two labels."""
    odd = [{"id": "é\n", "language": "de", "label": label, "text": "t"} for label in ("yes", "maybe")]
    train = pa.concat_tables([TRAIN, pa.Table.from_pylist(odd)])

    def place(row: dict) -> tuple[str, str, str]:
        return hashlib.sha256(f"3\x1ftrain\x1f{row['id']}".encode()).hexdigest(), row["language"], row["label"]

    ordered = sorted(train.to_pylist(), key=place)
    assert sample(train, shots=None, dev="none", seed=3).train.to_pylist() == ordered
    first = []
    for language, label in itertools.product(("de", "en"), LABELS):
        first += [row for row in ordered if (row["language"], row["label"]) == (language, label)][:2]
    assert sample(train, shots=2, dev="none", seed=3).train.to_pylist() == first


@pytest.mark.parametrize(
    "texts",
    [
        ['say "no"', "back\\slash", "two\nlines", "\x01", "\u2028 漢字 😀", ""],
        ["\u2028 漢字 😀", "", "\x7f\x80", "/ ' <", "é", "plain"],  # nothing that JSON escapes
        ["a", None, "c", "d", "e", "f"],
        *(["a", "b", f"{chr(code)}c", "d", "e", "f"] for code in (0, 0x1F, 0x20, ord('"'), ord("\\"))),
    ],
)
def test_the_hash_of_rows_is_that_of_their_json(texts):
    test = pa.table(
        {
            "id": texts,
            "language": ["en"] * 6,
            "starts": pa.array([[1, 2], [], [3], [4], [5], [6]], pa.list_(pa.int32())),
            "label": [[text, "b"] for text in texts],
        }
    )
    written = "".join(json.dumps(sorted(row.items()), ensure_ascii=False) for row in test.to_pylist())
    told = Sample(TRAIN, None, test, None).manifest()["test_hash"]
    assert told == hashlib.sha256(written.encode()).hexdigest()[:16]


def test_rows_whose_hashes_begin_alike_come_by_the_whole_hash(monkeypatch):
    """Ranks are compared by their first 8 bytes; of a billion rows some share these."""
    ranks = [b"b" * 8 + b"z" * 24, b"a" * 32, b"b" * 8 + b"y" * 24, b"b" * 8 + b"y" * 24]
    table = pa.table({"id": list("pqrr"), "language": ["de", "en", "en", "de"], "label": ["x"] * 4})
    monkeypatch.setattr(sampling, "_hashes", lambda *told: np.array(ranks, "S32"))
    assert sampling._order(table, 0, "train").tolist() == [1, 3, 2, 0]
    monkeypatch.setattr(sampling, "_hashes", lambda *told: np.array(ranks[:3], "S32"))
    assert sampling._order(table[:3], 0, "train").tolist() == [1, 2, 0], "of two languages as well"
    twice = pa.table({"id": ["r", "r"], "language": ["en", "en"], "label": ["y", "x"]})
    monkeypatch.setattr(sampling, "_hashes", lambda *told: np.array(ranks[2:], "S32"))
    assert sampling._order(twice, 0, "train").tolist() == [1, 0], "of one id by their labels"


@pytest.mark.parametrize("more", [0, 1])
def test_many_rows_are_a_hash_and_a_rule_in_the_manifest(more):
    train = rows("train", LISTED + more, ("en",)).slice(0, LISTED + more)
    manifest = sample(train, shots=None, dev="none").manifest()
    listed = manifest["ids"]["train"]
    if not more:
        assert len(set(listed)) == manifest["sizes"]["train"] == LISTED
        assert set(listed) <= {f"en/train-{label}-{i}" for i in range(LISTED) for label in LABELS}
        return
    assert manifest["sizes"]["train"] == LISTED + 1
    assert set(listed) == {"hash", "rule"}
    assert listed["rule"] == (
        'all train rows without ids of dev or demonstrations, by sha256 of "0", "train" and id with 0x1f between'
    )
    assert sample(train, shots=None, dev="none", seed=1).manifest()["ids"]["train"] != listed


def test_what_limits_chose_is_said_too():
    rules = sample(validation=None, dev_limit=3, test_limit=2, demos=1, seed=4).rules
    assert rules["dev"].startswith('3 train rows a language, by sha256 of "4", "held out" and id')
    assert rules["demos"].startswith("1 train rows a class and language, ")
    assert rules["test"].startswith('all rows of the test split; 2 of them a language, by sha256 of "0", "test"')
    assert sample(dev="none").rules["train"].startswith("4 train rows a class and language ")
    assert "; 4 of them a class and language" in sample(rule="zs2021").rules["dev"]
