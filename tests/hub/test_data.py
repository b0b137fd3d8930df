"""Data sets from the hub: only what is asked for, at one commit, which is in the cell key; again without the hub; one
line for what it refuses."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pa_parquet
import pytest
import yaml
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download
from test_catalogue import XNLI, serve
from test_cli import TASK, call, place, results, words  # noqa: F401  (a fixture)

from raypft import hub as our_hub
from raypft.campaigns.known_keys import KnownKeys
from raypft.config.load import load_job, read_values
from raypft.data import hub as data_hub
from raypft.data.origin import choose
from raypft.data.sources import read_rows, read_split
from raypft.data.streaming import Index, Reader, index
from raypft.errors import UserError
from raypft.runs.prepare import prepare
from raypft.tasks.load import load_task

NAME = "me/reviews"
WAY_OUT = "; or give local files with data.root=FOLDER"


def forget() -> None:
    """As in a new process."""
    our_hub._commits.clear()
    our_hub.say.cache_clear()
    for cached in (data_hub._tree, data_hub._layout_on_hub, data_hub._entries_of):
        cached.cache_clear()


def split_bytes(folder: Path, split: str) -> bytes:
    return (folder / f"{split}.parquet").read_bytes()


@pytest.fixture
def reviews(place, hub_here):  # noqa: F811
    """The tiny task, which now reads a data set of the hub first; its commit."""
    task = yaml.safe_load(TASK)
    task["sources"] = {"hub": {"hub": NAME}, **task["sources"]}
    (place / "mytask.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    files = {f"{split}.parquet": split_bytes(place, split) for split in ("train", "validation", "test")}
    return hub_here.add(NAME, files, kind="datasets")


def here(place, *more):  # noqa: F811
    """The command of the tiny task without local files."""
    return [word for word in words(place, "seeds=1", "train.epochs=1", *more) if word != f"data.root={place}"]


def job(place, *more):  # noqa: F811
    name, *overrides = here(place, *more)
    return load_job(name, overrides)


def told(read, *arguments) -> str:
    """The line of what can't be read."""
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(origin, split="train", languages=("en",)):
    table = read_split(origin, split, list(languages))
    assert table is not None
    return table.to_pylist()


# only what is asked for


def test_a_test_in_fifteen_languages_fetches_test_files_only(hub_here, capsys):
    forget()
    serve(hub_here, "facebook/xnli", 3)
    assert len(rows_of(choose(load_task("xnli"), None, None), "test", XNLI)) == 30
    files = [f"{language}/test-00000-of-00001.parquet" for language in XNLI]
    assert sorted(hub_here.fetched()) == ["README.md", *files]
    asked = [access.path for access in hub_here.log if "/resolve/" not in access.path]
    assert len(asked) == 2  # the commit and the listing
    assert capsys.readouterr().err.startswith("raypft: fetching facebook/xnli at ")


def test_shards_are_read_in_order_and_others_left(hub_here, place):  # noqa: F811
    table = pa_parquet.read_table(place / "train.parquet").filter([True] * 24 + [False] * 8)
    files = {}
    for number in range(3):
        pa_parquet.write_table(table.slice(8 * number, 8), place / "shard.parquet")
        files[f"data/train-0000{number}-of-00003.parquet"] = (place / "shard.parquet").read_bytes()
    files["data/test-00000-of-00001.parquet"] = split_bytes(place, "test")
    hub_here.add(NAME, files, kind="datasets")
    task = yaml.safe_load(TASK)
    for source in ({"hub": NAME}, {"hub": NAME, "files": {"train": "data/train-*.parquet"}}):
        task["sources"] = {"hub": source}
        (place / "mytask.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
        assert rows_of(choose(load_task(f"{place}/mytask.yaml"), None, None)) == table.to_pylist()
        assert "data/test-00000-of-00001.parquet" not in hub_here.fetched()
    assert len(hub_here.fetched()) == 3


# one commit


def test_a_run_is_of_one_commit_asked_for_once(reviews, place, hub_here, monkeypatch, capsys):  # noqa: F811
    assert call(monkeypatch, "run", *here(place)) == 0
    assert [access.path for access in hub_here.log if "/revision/" in access.path] == [
        f"/api/datasets/{NAME}/revision/main"
    ]
    stored = json.loads(next((place / "runs").glob("*/provenance.json")).read_text())["data"]
    assert stored == {
        "source": "hub",
        "root": None,
        "hub": NAME,
        "revisions": [f"hf://datasets/{NAME}@{reviews}"],
    }
    asked = len(hub_here.log)
    assert call(monkeypatch, "run", *here(place)) == 0  # reused
    texts = ["predict", str(next((place / "runs").glob("profit-*"))), "--text", "the film was good"]
    assert call(monkeypatch, *texts) == 0
    assert len(hub_here.log) == asked
    assert '"reuse"' not in capsys.readouterr().err


def test_two_revisions_are_two_cells_also_where_their_rows_are_equal(reviews, place, hub_here):  # noqa: F811
    files = hub_here.repos["datasets", NAME].commits[reviews]
    other = hub_here.add(NAME, {**files, "README.md": b"# the same rows\n"}, revision="v2", kind="datasets")
    local = prepare(job(place, f"data.root={place}/"))
    keys, seen = {}, {}
    for revision in (None, reviews, "v2", other):
        prepared = prepare(job(place, *([f"data.revision={revision}"] if revision else [])))
        keys[revision], seen[revision] = prepared.keys[0], prepared.manifests[0]["hash"]
        assert prepared.samples[0].train.equals(local.samples[0].train)
    assert keys[None] == keys[reviews] != keys["v2"] == keys[other]
    assert local.keys[0] not in keys.values()
    assert seen[None] == seen[reviews] != seen["v2"] == seen[other]
    assert local.manifests[0]["hash"] not in seen.values()


def test_a_revision_is_read_as_it_was(reviews, place, hub_here, monkeypatch):  # noqa: F811
    files = hub_here.repos["datasets", NAME].commits[reviews]
    hub_here.add(NAME, {**files, "train.parquet": split_bytes(place, "test")}, kind="datasets")
    task = load_task(f"{place}/mytask.yaml")
    at = {revision: rows_of(choose(task, None, None, None, revision)) for revision in (None, reviews, "main")}
    assert at[None] == at["main"] != at[reviews]
    assert at[reviews] == rows_of(choose(task, "files", str(place)))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            ["data.revision=v9"],
            f'data: {NAME} has no revision "v9" on the hub; see HUB/datasets/{NAME}/tree/main{WAY_OUT}',
        ),
        (
            [f"data.revision={'ab' * 20}"],
            f'data: {NAME} has no revision "{"ab" * 20}" on the hub; see HUB/datasets/{NAME}/tree/main{WAY_OUT}',
        ),
        (
            ["data.revision=v1", "data.source=files", "data.root=."],
            "data.revision: found v1, but source files of task mytask reads local files here; leave it out",
        ),
        (
            ["data.revision=v1", f"data.root=hf://datasets/{NAME}@main"],
            "data.revision: found v1, but data.root says main; leave one of them out",
        ),
        (
            ["data.source=hub", f"data.root=hf://datasets/{NAME}"],
            f"data.root: found hf://datasets/{NAME}, but source hub of task mytask names a data set itself; "
            "choose a data.source that reads files, or leave data.root out",
        ),
        (["data.root=hf://me"], "data: found hf://me; expected hf://datasets/OWNER/NAME[@REVISION][/FOLDER]"),
        (
            ["task=americasnli", "pattern=vanilla", "data.revision=v1"],
            "data.revision: found v1, but source hub of task americasnli reads more than one data set; leave it out",
        ),
    ],
)
def test_a_revision_or_root_that_does_not_fit_is_one_line(more, line, reviews, place, hub_here):  # noqa: F811
    def read() -> None:
        prepare(job(place, *more))

    assert told(read) == line.replace("HUB", hub_here.url)


def test_a_root_on_the_hub_is_read_as_a_folder_is(place, hub_here):  # noqa: F811
    files = {f"mine/{split}.parquet": split_bytes(place, split) for split in ("train", "validation", "test")}
    old = hub_here.add(NAME, files, kind="datasets", revision="old/er")
    new = hub_here.add(NAME, {**files, "mine/train.parquet": split_bytes(place, "test")}, kind="datasets")
    local = prepare(job(place, f"data.root={place}/"))
    for root, commit in ((f"hf://datasets/{NAME}@old%2Fer/mine", old), (f"hf://datasets/{NAME}/mine", new)):
        prepared = prepare(job(place, f"data.root={root}"))
        assert (prepared.samples[0].train.equals(local.samples[0].train)) == (commit == old)
        assert prepared.samples[0].commits == (f"hf://datasets/{NAME}@{commit}",)
        assert prepared.keys != local.keys
    line = told(lambda: prepare(job(place, f"data.root=hf://datasets/{NAME}@{old}")))
    assert line.startswith(f"data: no file hf://datasets/{NAME}@{old}/train (.parquet, ")
    assert line.endswith(" for the train split of mytask; found there: mine/")
    rows = read_rows(local.resolved.origin, f"hf://datasets/{NAME}@{old}/mine/test.parquet", None, "en")
    assert len(rows) == 32


def test_what_one_process_found_out_another_takes_over(reviews, place, hub_here):  # noqa: F811
    """The processes of a campaign read what it was planned with."""
    planned = prepare(job(place)).keys
    found = our_hub.commits()
    others = {f"{name}.parquet": split_bytes(place, "test") for name in ("train", "validation", "test")}
    hub_here.add(NAME, others, kind="datasets")
    forget()
    our_hub.adopt(found)
    assert prepare(job(place)).keys == planned
    forget()
    assert prepare(job(place)).keys != planned


def test_cells_of_a_commit_are_known_without_making_a_job(reviews, place, hub_here, monkeypatch, closed_port):  # noqa: F811
    values, _ = read_values("profit", here(place)[1:])
    inputs = KnownKeys(place / "campaign").inputs(values)
    assert inputs is not None
    assert KnownKeys(place / "campaign").inputs(values) == inputs
    hub_here.add(NAME, {"train.parquet": split_bytes(place, "test")}, kind="datasets")
    forget()
    assert KnownKeys(place / "campaign").inputs(values) not in (inputs, None)
    folder = values | {"data": {"source": "hub", "root": str(place)}}
    assert KnownKeys(place / "campaign").inputs(folder) is None  # it may change


# streams


def test_a_stream_is_read_in_parts_where_it_lies(reviews, place, hub_here, monkeypatch):  # noqa: F811
    task = load_task(f"{place}/mytask.yaml")
    local = index(choose(task, "files", str(place)), ["en", "de"])
    streamed = index(choose(task, None, None), ["en", "de"])
    assert streamed.fingerprint == local.fingerprint
    assert {group.file for group in streamed.groups} == {f"hf://datasets/{NAME}@{reviews}/train.parquet"}
    assert {access.status for access in hub_here.log if access.sent and "/resolve/" in access.path} == {206}
    hub_here.add(NAME, {}, kind="datasets")  # what is at main by now is nothing to a worker
    our_hub._commits.clear()
    there = Index.load(choose(task, None, None), streamed.dump())
    rows = [list(Reader(one, "uniform").rows(0, 0, 0, 32)) for one in (local, there)]
    assert rows[0] == rows[1]
    assert call(monkeypatch, "run", *here(place, "data.stream=uniform", f"data.revision={reviews}")) == 0
    (result,) = results(place).values()
    assert result["sizes"]["train"] == 24


def test_rows_of_a_stream_are_known_by_their_number_where_languages_are_parallel(hub_here):
    serve(hub_here, "facebook/xnli", 3)
    streamed = index(choose(load_task("xnli"), None, None), ["en", "sw"])
    drawn = list(Reader(streamed, "proportional").rows(0, 0, 0, 4))
    assert sorted((row["language"], row["id"]) for row in drawn) == [
        ("en", "0"),
        ("en", "1"),
        ("sw", "0"),
        ("sw", "1"),
    ]


def test_parallel_languages_have_as_many_rows_each(hub_here, place):  # noqa: F811
    files = {f"{name}/test.parquet": split_bytes(place, "test") for name in ("en", "de")}
    pa_parquet.write_table(pa_parquet.read_table(place / "test.parquet").slice(1), place / "less.parquet")
    files["de/test.parquet"] = split_bytes(place, "less")
    hub_here.add(NAME, files, kind="datasets")
    task = yaml.safe_load(TASK)
    task["sources"] = {"hub": {"hub": NAME, "files": {"test": "{language}/test.parquet"}, "parallel": True}}
    (place / "mytask.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    line = told(rows_of, choose(load_task(f"{place}/mytask.yaml"), None, None), "test", ("en", "de"))
    assert line.startswith("data: test rows of mytask (hub) are translations of each other; found 32 in en, 31 in de; ")


# without the hub


def test_what_was_read_once_is_read_again_without_the_hub(reviews, place, hub_here, monkeypatch, closed_port, capsys):  # noqa: F811
    keys = prepare(job(place)).keys
    capsys.readouterr()
    for offline, endpoint in ((True, hub_here.url), (False, f"http://127.0.0.1:{closed_port}")):
        forget()
        asked = len(hub_here.log)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        assert prepare(job(place)).keys == keys
        assert prepare(job(place, f"data.root=hf://datasets/{NAME}@{reviews}", "data.source=files")).keys == keys
        assert len(hub_here.log) == asked
        err = capsys.readouterr().err
        assert err == ("" if offline else err.splitlines()[0] + "\n")
        assert offline or err.startswith("raypft: the hub can't be reached (127.0.0.1: [Errno 111] Connection refused)")
    assert not scan_cache_dir(constants.HF_HUB_CACHE).warnings


def test_what_is_not_cached_is_one_line_without_the_hub(reviews, place, hub_here, monkeypatch, capsys):  # noqa: F811
    task = load_task(f"{place}/mytask.yaml")
    rows_of(choose(task, None, None))
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    end = f"is not in the local cache and the hub can't be reached: HF_HUB_OFFLINE is set{WAY_OUT}"
    assert rows_of(choose(task, None, None))
    assert told(rows_of, choose(task, None, None), "test") == f"data: {NAME} {end}"
    assert told(rows_of, choose(load_task("sst2"), None, None)) == f"data: stanfordnlp/sst2 {end}"
    assert told(index, choose(load_task("sst2"), None, None, None, "0" * 40), ["en"]) == f"data: stanfordnlp/sst2 {end}"


def test_what_another_program_cached_is_read_where_it_is_whole(reviews, place, hub_here, monkeypatch):  # noqa: F811
    task = load_task(f"{place}/mytask.yaml")
    load_one = functools.partial(hf_hub_download, NAME, "train.parquet", repo_type="dataset")
    for load, whole in ((load_one, False), (functools.partial(snapshot_download, NAME, repo_type="dataset"), True)):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        load()
        forget()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        if whole:
            assert len(rows_of(choose(task, None, None))) == 24
        else:
            line = (
                f"data: {NAME} is not in the local cache and the hub can't be reached: HF_HUB_OFFLINE is set{WAY_OUT}"
            )
            assert told(rows_of, choose(task, None, None)) == line


def test_a_silent_hub_is_waited_for_once_a_command(place, hub, silent_port):  # noqa: F811
    """Whatever the command asks of it: here two data sets."""
    for name in ("one", "two"):
        task = yaml.safe_load(TASK)
        task["sources"] = {"hub": {"hub": f"me/{name}"}}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    code = "\n".join(
        [
            "import sys, time",
            "from raypft.data.origin import choose; from raypft.data.sources import read_split",
            "from raypft.errors import UserError; from raypft.tasks.load import load_task",
            "for name in ('one', 'two'):",
            "    try: read_split(choose(load_task(f'{sys.argv[1]}/{name}.yaml'), None, None), 'train', ['en'])",
            "    except UserError as error: print(error)",
        ]
    )
    env = hub.env | {"HF_ENDPOINT": f"http://127.0.0.1:{silent_port}"}
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(place)], env=env, capture_output=True, text=True, check=True)
    assert time.monotonic() - begun < 15
    why = (
        r"is not in the local cache and the hub can't be reached: 127\.0\.0\.1: (timed out|no answer within \d seconds)"
    )
    for name, line in zip(("one", "two"), done.stdout.splitlines(), strict=True):
        assert re.fullmatch(rf"data: me/{name} {why}{WAY_OUT}", line)
    assert done.stderr == ""


# what it refuses


def test_what_the_hub_refuses_is_one_line(reviews, place, hub_here):  # noqa: F811
    files = hub_here.repos["datasets", NAME].commits[reviews]
    hub_here.add("me/gated", {**files, "README.md": b"# ask"}, kind="datasets", gated=True)
    hub_here.add("me/script", {"script.py": b"import datasets", "rows.parquet": files["test.parquet"]}, kind="datasets")
    configs = {"configs": [{"config_name": name, "data_files": "*.parquet"} for name in ("a", "b")]}
    hub_here.add("me/two", {**files, "README.md": f"---\n{yaml.safe_dump(configs)}---\n".encode()}, kind="datasets")
    hub_here.add("me/texts", {"train.txt": b"a\nb\n"}, kind="datasets")
    hub_here.add("me/none", {"notes.doc": b""}, kind="datasets")
    for source, line in (
        ({"hub": "me/gated"}, "me/gated is gated; accept its licence at HUB/datasets/me/gated and set HF_TOKEN"),
        ({"hub": "me/missing"}, "the hub has no dataset me/missing (or HF_TOKEN may not see it)"),
        (
            {"hub": "me/script"},
            "me/script can't be read as a data set of the hub: Dataset scripts are no longer supported, but found "
            "script.py; if its revision refs/convert/parquet holds files, name them in the source's files",
        ),
        (
            {"hub": "me/two"},
            "me/two can't be read as a data set of the hub: Config name is missing.",
        ),
        (
            {"hub": "me/two", "config": "c"},
            "me/two can't be read as a data set of the hub: BuilderConfig 'c' not found. Available: ['a', 'b']",
        ),
        (
            {"hub": NAME, "splits": {"train": "training"}},
            "hf://datasets/me/reviews@SHA has no split training; found: train, validation, test; "
            "name theirs in the source's splits",
        ),
        (
            {"hub": "me/none"},
            "me/none can't be read as a data set of the hub: No (supported) data files found in me/none",
        ),
        ({"hub": "me/gated", "files": {"train": "train.parquet"}}, "me/gated is gated; accept its licence at "),
    ):
        task = yaml.safe_load(TASK)
        task["sources"] = {"hub": source}
        (place / "mytask.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
        found = told(rows_of, choose(load_task(f"{place}/mytask.yaml"), None, None))
        line = line.replace("HUB", hub_here.url).replace("SHA", reviews)
        assert found.startswith(f"data: {line}")
        assert found.endswith(WAY_OUT) or "splits" in source
    task["sources"] = {"hub": {"hub": "me/texts"}}
    (place / "mytask.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    line = told(rows_of, choose(load_task(f"{place}/mytask.yaml"), None, None))
    assert "/train.txt: expected a file that ends in .parquet, .arrow" in line
