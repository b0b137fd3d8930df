"""Streamed train rows: every row once an epoch, the stated mix in any stretch, the same rows for any workers."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from test_cli import TASK, call, place, words  # noqa: F401  (a fixture)

from raypft.data import streaming
from raypft.data.origin import choose
from raypft.data.streaming import Group, Index, Order, Reader, index, shares
from raypft.errors import UserError
from raypft.tasks.load import load_task
from raypft.training.flow import Share, steps

SIZES = {"en": 700, "de": 210, "sw": 61, "zh": 29}


@pytest.fixture
def origin():
    return choose(load_task("sentiment"), None, None)


def made(origin, sizes=SIZES, group=40) -> Index:
    """An index of groups of so many rows; nothing is read."""
    groups = []
    for name, size in sizes.items():
        for number, start in enumerate(range(0, size, group)):
            groups.append(Group(f"{name}.parquet", number, name, min(group, size - start), True))
    return Index(origin, tuple(groups), "f")


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("proportional", SIZES),
        ("uniform", dict.fromkeys(SIZES, 250)),
        (2.0, {"en": 489, "de": 268, "sw": 144, "zh": 99}),
        (1.0, SIZES),
    ],
)
def test_how_many_rows_a_language_gives(mix, expected):
    """To the row: what is left when all are rounded down goes to the largest remainders."""
    assert shares(SIZES, mix) == expected


def test_rows_that_are_left_go_to_the_largest_remainders():
    assert shares({"a": 1, "b": 3, "c": 4}, "uniform") == {"a": 3, "b": 3, "c": 2}, "of equals to the first"
    roots = {"a": 1, "b": 4, "c": 9}  # of 14 rows 2 1/3, 4 2/3, 7
    assert shares(roots, 2.0) == {"a": 2, "b": 5, "c": 7}


@pytest.mark.parametrize("mix", ["proportional", "uniform", 3.0])
def test_an_epoch_is_a_permutation_with_the_mix_everywhere(mix, origin):
    order = Order(made(origin), mix, seed=3, epoch=1)
    whole = order.places(0, 1000)
    assert len(whole) == 1000
    assert Counter(name for name, _ in whole) == order.shares
    for name, share in order.shares.items():
        assert [number for language, number in whole if language == name] == list(range(share))
    for start in range(0, 1000, 37):
        stop = min(1000, start + 32)
        assert order.places(start, stop) == whole[start:stop]
        seen = Counter(name for name, _ in whole[:stop])
        assert all(abs(seen[name] - stop * share / 1000) <= len(SIZES) / 2 for name, share in order.shares.items())
    located = [(name, order.locate(name, number)) for name, number in whole]
    times = Counter((name, group, int(order.within(name, turn, group)[row])) for name, (turn, group, row) in located)
    for name, share in order.shares.items():
        often = set()
        for number, group in enumerate(order.languages[name]):
            often |= {times[name, number, row] for row in range(group.rows)}
        assert often <= {share // SIZES[name], -(-share // SIZES[name])}, (
            "a row came more often than another by more than once"
        )
    if mix == "proportional":
        assert len(times) == 1000


def test_epochs_and_seeds_differ_and_nothing_else_does(origin):
    def first(seed: int, epoch: int) -> list:
        order = Order(made(origin), "proportional", seed, epoch)
        return [order.locate(*one) for one in order.places(0, 50)]

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1) != first(1, 0)


def test_rows_of_a_group_come_in_an_order_of_their_own(origin):
    """Another each time: of a seed, an epoch, a turn and a group."""
    index = made(origin)
    orders = [
        Order(index, "uniform", seed, epoch).within("zh" if group else "de", turn, 0)
        for seed, epoch, turn, group in itertools.product(range(2), repeat=4)
    ]
    for order in orders:
        assert sorted(order) == list(range(len(order)))
        assert list(order) != list(range(len(order)))
    assert len({tuple(order) for order in orders}) == 16
    assert list(Order(index, "uniform", 1, 1).within("zh", 1, 0)) == list(orders[-1])


def write_rows(path: Path, sizes: dict[str, int], group: int, together: bool) -> None:
    """Train rows whose text says language and number; a file a language, or all in one."""
    table = [
        {
            "id": f"{name}{i}",
            "language": name,
            "text": f"the film was {'good' if i % 2 else 'bad'}",
            "label": ("negative", "positive")[i % 2],
        }
        for i, name in itertools.product(range(max(sizes.values())), sizes)
        if i < sizes[name]
    ]
    parts: dict[str, list] = {}
    for row in table:
        parts.setdefault("train" if together else f"train-{row['language']}", []).append(row)
    for name, rows in parts.items():
        pa_parquet.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet", row_group_size=group)


def task_with(train: str) -> str:
    """The tiny task with other train files."""
    return TASK.replace("{train: train,", f"{{train: {train},")


def _id_of(row: Mapping[str, Any]) -> list[str]:
    return [row["id"]]


IDS = cast(Any, _id_of)
"""In an encoder's place: a row's prompts are its id."""


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_a_large_row_group_is_read_in_pieces(compression, tmp_path, monkeypatch):
    """As if each piece were a row group: the same rows stand at the same places, and no more are in memory."""
    monkeypatch.setattr(streaming, "MOST", 16)
    (tmp_path / "own.yaml").write_text(TASK)

    def read(group: int) -> list[dict[str, Any]]:
        write_rows(tmp_path, {"en": 130, "de": 43}, group, together=True)
        table = pa_parquet.read_table(tmp_path / "train.parquet")
        pa_parquet.write_table(table, tmp_path / "train.parquet", row_group_size=group, compression=compression)
        streamed = index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en", "de"])
        assert max(group.rows for group in streamed.groups) <= 16
        assert [group.first for group in streamed.languages["en"]][:3] == [0, 8, 16]
        assert sum({(group.number, group.start): group.size for group in streamed.groups}.values()) == 173
        assert Index.load(streamed.origin, streamed.dump()) == streamed
        return list(Reader(streamed, "proportional").rows(5, 2, 0, 173))

    whole = read(1000)
    assert whole == read(16)
    assert len({row["id"] for row in whole}) == 173


@pytest.mark.parametrize("together", [True, False])
def test_any_number_of_readers_reads_each_row_once(together, tmp_path):
    write_rows(tmp_path, {"en": 130, "de": 43}, 16, together)
    (tmp_path / "own.yaml").write_text(task_with("train" if together else "train-*.parquet"))
    streamed = index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en", "de"])
    assert (streamed.rows, streamed.languages.keys()) == (173, {"en", "de"})
    assert Index.load(streamed.origin, streamed.dump()) == streamed
    assert sorted(streamed.head()["id"].to_pylist()) == ["de0", "en0"]

    def read(step: int, rank: int, world: int, batch_size: int) -> list[list[Any]]:
        return list(steps(Reader(streamed, "proportional"), IDS, Share(5, 2, step, batch_size, rank, world)))

    whole = read(0, 0, 1, 10)
    keys = list(itertools.chain.from_iterable(whole))
    assert sorted(keys) == sorted([f"en{i}" for i in range(130)] + [f"de{i}" for i in range(43)])
    assert [len(step) for step in whole] == [10] * 17 + [3]
    assert keys == list(itertools.chain.from_iterable(read(0, 0, 1, 7)))
    assert read(11, 0, 1, 10) == whole[11:]
    some = list(steps(Reader(streamed, "proportional"), IDS, Share(5, 2, 11, 10, 0, 1), 2))
    assert some == whole[11:13]
    for world in (2, 3):
        shared = [read(4, rank, world, 10) for rank in range(world)]
        together_again = [sorted(itertools.chain.from_iterable(parts)) for parts in zip(*shared)]
        assert together_again == list(map(sorted, whole[4:]))


def test_a_streamed_run_in_this_process(place, monkeypatch, capsys):  # noqa: F811
    """Through the command line; its cell is another than that of rows in memory."""
    write_rows(place, {"en": 70, "de": 21}, 16, together=True)
    more = [
        "train.languages=[en,de]",
        "seeds=1",
        "train.epochs=5",
        "train.batch_size=8",
        "data.stream=uniform",
        "train.patience=null",
    ]
    assert call(monkeypatch, "check", *words(place, *more)) == 0
    told = capsys.readouterr().out
    assert "rows: 91 train" in told
    assert "steps: 60 a seed" in told
    for storage, settings in (("streamed", more), ("memory", [*more, "data.stream=null"])):
        assert call(monkeypatch, "run", *words(place, *settings, f"storage={place}/{storage}")) == 0
    streamed, memory = (
        json.loads(next(place.glob(f"{name}/*/seed-0/result.json")).read_text()) for name in ("streamed", "memory")
    )
    assert streamed["cell"] != memory["cell"]
    assert len(streamed["losses"]) == len(memory["losses"]) == 60
    assert sum(streamed["losses"][-12:]) < 0.7 * sum(streamed["losses"][:12])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.stream=even"], "data.stream: found 'even'"),
        (["data.stream=0.5"], "data.stream: found 0.5"),
        (["data.stream=true"], "data.stream: found True"),
        (["data.stream=uniform", "shots=4"], "data.stream: found shots=4; a stream has all rows"),
        (["data.stream=uniform", "protocol=gnnavi"], "data.stream: protocol gnnavi holds dev rows out of train"),
    ],
)
def test_bad_streams_are_one_line(more, message, place, monkeypatch, capsys):  # noqa: F811
    assert call(monkeypatch, "check", *words(place, *more)) == 2
    assert message in capsys.readouterr().err


def test_files_that_cant_be_streamed_are_one_line(place, monkeypatch, capsys):  # noqa: F811
    (place / "train.parquet").unlink()
    (place / "train.jsonl").write_text('{"id": "1", "text": "x", "label": "negative", "language": "en"}\n')
    assert call(monkeypatch, "check", *words(place, "data.stream=uniform")) == 2
    assert "train.jsonl: expected Parquet files" in capsys.readouterr().err


def test_what_makes_other_data(tmp_path):
    """A corrected label changes the fingerprint, another place of the files does not; empty files don't count."""
    prints = []
    for number, labels in enumerate(
        (
            ["negative", "positive"] * 20,
            ["negative", "positive"] * 20,
            ["positive", "negative", *["negative", "positive"] * 19],
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "own.yaml").write_text(task_with("train-*.parquet"))
        table = pa.table(
            {"id": [str(i) for i in range(40)], "text": ["a film"] * 40, "label": labels, "language": ["en"] * 40}
        )
        pa_parquet.write_table(table, folder / "train-1.parquet")
        pa_parquet.write_table(table.slice(0, 0), folder / "train-0.parquet")
        streamed = index(choose(load_task(f"{folder}/own.yaml"), None, str(folder)), ["en"])
        assert streamed.rows == len(streamed.head()) * 40 == 40
        prints.append(streamed.fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_a_bad_row_is_one_line(place, monkeypatch, capsys):  # noqa: F811
    """It is met when it is read."""
    write_rows(place, {"en": 70}, 16, together=True)
    table = pa_parquet.read_table(place / "train.parquet")
    labels = [*table["label"].to_pylist()[:-1], "great"]
    pa_parquet.write_table(
        table.set_column(table.column_names.index("label"), "label", pa.array(labels)),
        place / "train.parquet",
        row_group_size=16,
    )
    assert call(monkeypatch, "run", *words(place, "data.stream=uniform", "seeds=1")) == 2
    error = capsys.readouterr().err
    assert '"great"' in error
    assert error.count("\n") == 1


def test_a_run_that_stopped_at_the_end_of_an_epoch_goes_on(tmp_path):
    """Its state says step = steps: nothing of the epoch is left."""
    write_rows(tmp_path, {"en": 20}, 16, together=True)
    (tmp_path / "own.yaml").write_text(TASK)
    streamed = index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en"])
    assert list(steps(Reader(streamed, 2.0), IDS, Share(0, 0, 2, 10, 0, 1))) == []


@pytest.mark.parametrize("train", ["train", "'train-{language}'"])
def test_rows_that_say_no_language_are_of_their_files_or_the_tasks_first(train, tmp_path):
    (tmp_path / "own.yaml").write_text(task_with(train))
    names = ["train-en", "train-de"] if "language" in train else ["train"]
    for name in names:
        table = pa.table({"id": [f"{name}{i}" for i in range(3)], "text": ["a film"] * 3, "label": ["negative"] * 3})
        pa_parquet.write_table(table, tmp_path / f"{name}.parquet")
    wanted = [name[-2:] if "-" in name else "en" for name in names]
    streamed = index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), wanted)
    assert [(group.language, group.rows, group.alone) for group in streamed.groups] == [(n, 3, True) for n in wanted]
    assert streamed.head()["language"].to_pylist() == wanted


def test_rows_without_ids_of_parallel_languages_are_named_by_their_place_in_the_split(tmp_path):
    files = "{train: 'train-{language}', validation: 'train-{language}', test: 'train-{language}'}"
    known = "files: {files: {train: train, validation: validation, test: test}}"
    own = TASK.replace(known, f"files: {{parallel: true, files: {files}}}")
    (tmp_path / "own.yaml").write_text(own)
    for name in ("en", "de"):
        table = pa.table({"text": [f"a film {i} in {name}" for i in range(5)], "label": ["negative"] * 5})
        pa_parquet.write_table(table, tmp_path / f"train-{name}.parquet", row_group_size=2)
    streamed = index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en", "de"])
    read = [streaming.read_group(streamed.origin, group) for group in streamed.languages["de"]]
    assert [table["id"].to_pylist() for table in read] == [["0", "1"], ["2", "3"], ["4"]]
    assert [table["text"][0].as_py() for table in read] == ["a film 0 in de", "a film 2 in de", "a film 4 in de"]


def test_files_are_named_so_that_other_processes_find_them_and_their_names_make_no_other_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prints = set()
    for name in ("train", "more"):
        (tmp_path / "own.yaml").write_text(task_with(name))
        write_rows(tmp_path, {"en": 3}, 16, together=True)
        if name == "more":
            (tmp_path / "train.parquet").rename(tmp_path / "more.parquet")
        streamed = index(choose(load_task("./own.yaml"), None, "."), ["en"])
        assert [group.file for group in streamed.groups] == [str(tmp_path / f"{name}.parquet")]
        prints.add(streamed.fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize("dictionary", [True, False])
def test_other_ids_are_other_data_however_they_are_stored(dictionary, tmp_path):
    """Names in a dictionary, or each where it stands; of the same sizes, under the same codes."""
    (tmp_path / "own.yaml").write_text(TASK)
    prints = []
    for letter in "aab":
        ids = [f"{letter}{i % 10}" for i in range(40)]
        table = pa.table({"id": ids, "text": ["a film"] * 40, "label": ["negative"] * 40, "language": ["en"] * 40})
        pa_parquet.write_table(table, tmp_path / "train.parquet", use_dictionary=dictionary)
        prints.append(index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en"]).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_as_many_rows_as_there_may_be(tmp_path, monkeypatch):
    write_rows(tmp_path, {"en": 20, "de": 5}, 16, together=True)
    (tmp_path / "own.yaml").write_text(TASK)
    source = choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path))
    monkeypatch.setattr(streaming, "LIMIT", 25)
    assert index(source, ["en", "de"]).rows == 25
    monkeypatch.setattr(streaming, "LIMIT", 24)
    with pytest.raises(UserError, match="found more than 24 rows"):
        index(source, ["en", "de"])
    assert index(source, ["en"]).rows == 20, "of the languages that are asked for"


def test_no_more_of_a_row_group_is_read_than_up_to_the_end_of_the_piece():
    """However its rows come: a piece may begin and end within what comes at once."""
    read = list[int]()

    def batches(size, row_groups):
        for start in range(0, 50, 10):
            read.append(start)
            yield pa.RecordBatch.from_pydict({"row": list(range(start, start + 10))})

    for start, size, wanted in ((0, 10, [0]), (10, 20, [0, 10, 20]), (5, 10, [0, 10]), (45, 16, [0, 10, 20, 30, 40])):
        read.clear()
        group = Group("f", 0, "en", size, True, start=start, size=size)
        piece = streaming._piece(cast(Any, SimpleNamespace(iter_batches=batches)), group)
        assert piece["row"].to_pylist() == list(range(start, min(50, start + size)))
        assert read == wanted


def test_of_many_languages_with_equal_remainders_the_first_get_more():
    sizes = {f"l{number:03}": 2 + number % 2 for number in range(100)}
    assert list(shares(sizes, "uniform").values()) == [3] * 50 + [2] * 50
    found = list(shares(sizes, 2.0).values())  # of 250 rows 2.25 and 2.75: half of the rest goes to the first of these
    assert found == [3 if number % 2 else 2 for number in range(100)]
    assert list(shares(dict.fromkeys(sizes, 7) | {"one": 1}, "uniform").values()) == [7] * 95 + [6] * 6


def test_languages_of_one_row_or_none_have_their_places(origin):
    """Due at (k + 1/2) N / s: the one of 1 in the middle; of equals the language that is named earlier comes first."""
    order = Order(made(origin, {"a": 3, "b": 1, "c": 3}), "proportional", 0, 0)
    assert [name for name, _ in order.places(0, 7)] == list("acabcac")
    order = Order(made(origin, {"a": 1, "b": 99}), 1e9, 0, 0)
    assert order.shares == {"a": 50, "b": 50}
    order.shares = {"a": 0, "b": 100}
    assert order.places(0, 100) == [("b", number) for number in range(100)]


@pytest.mark.parametrize("sizes", [{"a": 1, "b": 1}, {"a": 500, "b": 1, "c": 2}, {str(n): 1 + n % 5 for n in range(9)}])
def test_any_stretch_of_an_epoch_is_that_part_of_the_whole(sizes, origin):
    order = Order(made(origin, sizes), "proportional", 0, 0)
    size = sum(sizes.values())
    whole = order.places(0, size)
    due = sorted(
        ((2 * number + 1) * size / (2 * share), turn, name, number)
        for turn, (name, share) in enumerate(sizes.items())
        for number in range(share)
    )
    assert whole == [(name, number) for _, _, name, number in due]
    for start in range(0, size, max(1, size // 60)):
        for length in (1, 7):
            assert order.places(start, start + length) == whole[start : start + length]


def test_row_groups_come_in_another_order_each_time_a_language_comes_round(origin):
    order = Order(made(origin, {"en": 400}, group=10), "proportional", 0, 0)
    seen = [[order.locate("en", turn * 400 + number)[:2] for number in range(0, 400, 10)] for turn in (0, 1, 0)]
    assert [{turn for turn, _ in one} for one in seen] == [{0}, {1}, {0}]
    groups = [[group for _, group in one] for one in seen]
    assert sorted(groups[0]) == sorted(groups[1]) == list(range(40))
    assert groups[0] == groups[2] != groups[1]
    assert list(range(40)) not in groups


def test_one_reader_reads_epoch_after_epoch_what_a_new_one_would(tmp_path):
    """Row groups that it holds of one epoch are in another order in the next."""
    write_rows(tmp_path, {"en": 12}, 16, together=True)
    (tmp_path / "own.yaml").write_text(TASK)
    streamed = index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en"])
    reader, orders = Reader(streamed, "proportional"), set()
    for seed, epoch in ((0, 0), (0, 1), (1, 1), (0, 0)):
        rows = list(reader.rows(seed, epoch, 0, 12))
        assert rows == list(Reader(streamed, "proportional").rows(seed, epoch, 0, 12))
        orders.add(tuple(row["id"] for row in rows))
    assert len(orders) == 3


@pytest.mark.parametrize("mix", ["proportional", "uniform", 1, 1.5, 3.0])
def test_a_mix_is_a_name_or_a_temperature_of_one_or_more(mix):
    assert streaming._mixed(mix) == mix
    for other in (0.99, -1, float("inf"), float("nan"), "even", True):
        with pytest.raises(ValueError, match="expected proportional, uniform or a temperature"):
            streaming._mixed(other)


def test_each_row_group_is_read_once_in_parts_and_an_order_is_made_once(tmp_path, monkeypatch):
    write_rows(tmp_path, {"en": 48}, 16, together=True)
    (tmp_path / "own.yaml").write_text(TASK)
    whole, groups, orders = set[bool](), list[int](), list[int]()
    opened, read_group, order = streaming.sources.system_for, streaming.read_group, streaming.Order

    def open_file(*given, **more):
        whole.add(more.get("whole", True))
        return opened(*given, **more)

    monkeypatch.setattr(streaming.sources, "system_for", open_file)
    monkeypatch.setattr(streaming, "read_group", lambda *given: groups.append(given[1].number) or read_group(*given))
    monkeypatch.setattr(streaming, "Order", lambda *given: orders.append(given[-1]) or order(*given))
    streamed = index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en"])
    reader = Reader(streamed, "proportional")
    rows = [*reader.rows(0, 4, 0, 30), *reader.rows(0, 4, 30, 48)]
    assert len({row["id"] for row in rows}) == 48
    assert (sorted(groups), orders, whole) == ([0, 1, 2], [4], {False})
    assert len(streamed.fingerprint) == 16


def test_what_makes_no_other_data_and_what_does(tmp_path):
    """The order in which a source names its languages does not; other texts do where their size is another."""
    prints = []
    for languages, text in (("en: en, de: de", "a"), ("de: de, en: en", "a"), ("en: en, de: de", "a longer one")):
        task = TASK.replace("test: test}}", f"test: test}}, languages: {{{languages}}}}}")
        assert task != TASK
        (tmp_path / "own.yaml").write_text(task)
        rows = [{"id": str(i), "language": "en", "text": text, "label": "negative"} for i in range(3)]
        pa_parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
        prints.append(index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en"]).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_a_language_in_another_case_is_told(tmp_path):
    write_rows(tmp_path, {"en": 3, "DE": 3}, 16, together=True)
    (tmp_path / "own.yaml").write_text(TASK)
    with pytest.raises(UserError, match="DE"):
        index(choose(load_task(f"{tmp_path}/own.yaml"), None, str(tmp_path)), ["en"])
