"""Models from the hub: every alias in the files it has there, revisions, what is fetched, what is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from layouts import LAYOUTS, files

import raypft
from raypft import hub as our_hub
from raypft.backbones import fetch as fetching
from raypft.backbones.aliases import ALIASES, Alias, Wheel
from raypft.backbones.fetch import Found, fetch, hub_reference, locate, pinned
from raypft.backbones.fetch import revision as content_hash
from raypft.backbones.load import load_backbone, load_skeleton
from raypft.errors import UserError
from raypft.records import opened
from raypft.runs.prepare import cell_keys, prepare

RECIPES = {"masked": "profit", "causal": "icl", "seq2seq": "profit"}
TINY = {"task": "sentiment", "shots": 2, "seeds": [0], "train": {"epochs": 1}}
WHEEL = Wheel("tiny-llama==1.0", "tiny_llama/tiny.gguf", "0" * 64)


def variant(alias: str, note: str) -> dict[str, bytes]:
    """The files of an alias with another configuration that decides nothing."""
    content = files(alias)
    return {**content, "config.json": json.dumps({**json.loads(content["config.json"]), "note": note}).encode()}


@pytest.fixture
def here(hub_here, monkeypatch, tmp_path):
    """The stand-in, and a working directory and cache of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYPFT_CACHE", str(tmp_path / "cache"))
    our_hub.say.cache_clear()
    return hub_here


def test_every_alias_has_a_layout_here():
    assert set(LAYOUTS) == set(ALIASES)


@pytest.mark.parametrize("alias", LAYOUTS)
def test_an_alias_is_checked_and_loaded_from_the_files_it_has_on_the_hub(alias, here, monkeypatch):
    here.tokens = {"hf_known": "me"}
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    content, hub_id = files(alias), ALIASES[alias].hub
    commit = here.add(hub_id, content, gated=ALIASES[alias].gated, readers={"hf_known"})
    backbone = load_backbone(alias)
    assert (backbone.hub, backbone.revision, backbone.lacks) == (hub_id, commit, ())
    shards = [path for path in content if re.fullmatch(r"model-.*safetensors|model.safetensors.index.json", path)]
    wanted = LAYOUTS[alias][1].replace("SHARDS", " ".join(shards)).split()
    assert sorted(here.fetched()) == sorted(wanted)
    ids = backbone.text.tokenize("the film was good")
    assert backbone.text.tokenizer.decode(ids).strip() == "the film was good"
    assert backbone.text.tokenizer.unk_token_id not in ids
    settings = {**TINY, "train": {"max_tokens": 150}}
    lines = raypft.check(raypft.load_job(RECIPES[backbone.family], backbone=alias, **settings))["lines"]
    assert lines[-1].startswith("ok: ")
    assert sorted(here.fetched()) == sorted(wanted)


def test_mt5_runs_from_a_pickle_and_a_sentencepiece_model(here):
    commit = here.add("google/mt5-base", files("mt5-base"))
    results = raypft.run("profit", backbone="mt5-base", **TINY)
    assert 0 <= results.mean <= 100
    assert results.seeds[0]["backbone"] == commit
    provenance = json.loads((results.folder / "provenance.json").read_text())
    assert provenance["backbone"] == {"name": "mt5-base", "source": "google/mt5-base", "revision": commit}
    rows = [{"text": "the film was good"}]
    before = raypft.load_trained(results.folder).predict(rows)
    here.add("google/mt5-base", {**variant("mt5-base", "moved"), "pytorch_model.bin": b"other weights"})
    our_hub._commits.clear()
    assert raypft.load_trained(results.folder).predict(rows) == before


def test_a_revision_is_a_branch_a_tag_or_a_commit_and_makes_the_key(here):
    first = here.add("o/m", files("mbert"), revision="v1.0")
    second = here.add("o/m", variant("mbert", "second"), revision="refs/pr/1")
    here.add("o/m", variant("mbert", "third"))
    jobs = {at: raypft.load_job("profit", backbone=f"o/m@{at}", **TINY) for at in ("v1.0", first, "refs/pr/1", "main")}
    keys = {at: raypft.check(job)["cells"] for at, job in jobs.items()}
    assert keys["v1.0"] == keys[first]
    assert len({json.dumps(key) for key in keys.values()}) == 3
    assert [locate(f"o/m@{at}").revision for at in ("v1.0", "refs/pr/1")] == [first, second]
    assert load_skeleton("o/m@refs/pr/1").text.config.note == "second"
    names = {at: jobs[at].job.run_name.rsplit("-", 1)[0] for at in jobs}
    assert names["v1.0"] == "profit-sentiment-2shot-m@v1.0"
    assert names["refs/pr/1"] == "profit-sentiment-2shot-m@refs-pr-1"


def test_a_branch_that_moves_meanwhile_is_the_commit_it_was(here):
    commit = here.add("o/m", files("mbert"))
    job = raypft.load_job("profit", backbone="o/m", **TINY)
    key = raypft.check(job)["cells"][0]
    here.add("o/m", variant("mbert", "moved"))
    found = our_hub.commits()
    our_hub._commits.clear()  # as in another process
    our_hub.adopt(found)
    results = raypft.run(job)
    assert (results.seeds[0]["cell"], results.seeds[0]["backbone"]) == (key, commit)
    our_hub._commits.clear()
    with pytest.raises(UserError, match="was begun with other data, model or method version"):
        raypft.check(job)
    assert load_backbone(pinned("o/m", commit)).revision == commit


def test_a_run_that_knew_its_hub_model_by_its_content_still_answers(here):
    here.add("o/m", files("mbert"))
    results = raypft.run("profit", backbone="o/m", **TINY)
    rows = [{"text": "the film was good"}]
    expected = raypft.load_trained(results.folder).predict(rows)
    prepared = prepare(raypft.load_job("profit", backbone="o/m", **TINY))
    content = content_hash(Path(str(prepared.skeleton.source)))
    path = results.folder / "seed-0" / "result.json"
    result = opened(path.read_bytes())
    (results.folder / "samples.json").unlink()
    for weights, answers in ((content, True), ("0" * 16, False)):
        (key,) = cell_keys(prepared.resolved, {0: result["manifest"]}, weights).values()
        path.write_text(json.dumps({**result, "backbone": weights, "cell": key}))  # as versions without hashes did
        if answers:
            assert raypft.load_trained(results.folder).predict(rows) == expected
        else:
            with pytest.raises(UserError, match="was trained with another model"):
                raypft.load_trained(results.folder)


def test_what_names_a_hub_model_and_what_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model@v1").mkdir(parents=True)
    for name, found in {
        "gpt2": ("openai-community/gpt2", None),
        "gpt2@v2": ("openai-community/gpt2", "v2"),
        "o/m": ("o/m", None),
        "o/m.v2@refs/pr/1": ("o/m.v2", "refs/pr/1"),
        "here/model@v1": None,
        "here/none": None,
        "./o/m": None,
        "a/b/c": None,
        "/o/m": None,
        "~/m": None,
        "o/m.gguf": None,
        "gpt3": None,
        "o/m@": None,
    }.items():
        assert hub_reference(name) == found, name
    commit = "0123456789" * 4
    assert pinned("gpt2", commit) == f"openai-community/gpt2@{commit}"
    assert pinned("smollm2-135m", "0123456789abcdef") == "smollm2-135m@wheel"
    assert pinned("here/none", commit) == "here/none"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("o/none", "backbone: the hub has no model o/none (or HF_TOKEN may not see it)"),
        ("o/m@v9", 'backbone: o/m has no revision "v9" on the hub; see {hub}/o/m/tree/main'),
        ("o/gated", "backbone: o/gated is gated; accept its licence at {hub}/o/gated and set HF_TOKEN"),
        (f"o/m@{'0' * 40}", 'backbone: o/m has no revision "' + "0" * 40 + '" on the hub; see {hub}/o/m/tree/main'),
        (
            "o/bad--name",
            "backbone: o/bad--name can't be read from the hub: Cannot have -- or .. in repo_id: 'o/bad--name'.",
        ),
    ],
)
def test_what_can_not_be_had_is_one_line(name, line, here):
    here.add("o/m", files("mbert"))
    here.add("o/gated", files("mbert"), gated=True)
    with pytest.raises(UserError) as raised:
        locate(name)
    assert str(raised.value) == line.format(hub=here.url)


def test_the_real_model_is_preferred_to_the_wheels_where_the_hub_can_be_reached(here, monkeypatch, tmp_path, capsys):
    converted = tmp_path / "cache" / "models" / WHEEL.sha256[:16]
    converted.mkdir(parents=True)
    for path, content in files("smollm2-135m").items():
        if "/" not in path:
            (converted / path).write_bytes(content)
    monkeypatch.setitem(ALIASES, "tiny", Alias("o/tiny", "", wheel=WHEEL))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from_wheel = locate("tiny")
    assert from_wheel == Found(converted)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "HF_HUB_OFFLINE is set); its copy in the wheel tiny-llama==1.0 is used" in told
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    commit = here.add("o/tiny", files("smollm2-135m"))
    real = locate("tiny")
    assert (real.hub, real.commit) == ("o/tiny", commit)
    assert real.revision != from_wheel.revision
    assert locate("tiny@wheel") == from_wheel
    assert locate(pinned("tiny", from_wheel.revision)) == from_wheel
    assert locate(pinned("tiny", real.revision)) == real
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("tiny") == real  # cached by now


def test_a_wheel_that_can_not_be_had_either_is_one_line(here, monkeypatch):
    def run(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], 1, stderr="ERROR: no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(UserError, match=r"neither the hub nor the wheel tiny-llama==1\.0 could be reached: ERROR: no"):
        fetch("o/tiny", wheel=WHEEL)


def command(env: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A raypft command in a process of its own."""
    call = [sys.executable, "-m", "raypft.cli", *words]
    return subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_check_says_what_it_fetches_and_nothing_else_then_works_without_the_hub(hub, tmp_path):
    commit = hub.add("google/mt5-base", files("mt5-base"))
    words = ("check", "profit", "task=sentiment", "backbone=mt5-base", "shots=2")
    first = command(hub.env, tmp_path, *words)
    size = sum(
        len(hub.repos["models", "google/mt5-base"].commits[commit][path]) for path in LAYOUTS["mt5-base"][1].split()
    )
    assert first.returncode == 0
    lines = first.stderr.splitlines()
    assert lines == [f"raypft: fetching google/mt5-base at {commit[:12]} from the hub: 5 files, {size / 1e6:.1f} MB"]
    offline = command(hub.env | {"HF_HUB_OFFLINE": "1"}, tmp_path, *words)
    assert (offline.stdout, offline.stderr) == (first.stdout, "")
    away = command(hub.env | {"HF_ENDPOINT": "http://127.0.0.1:9"}, tmp_path, *words)
    assert away.stdout == first.stdout
    assert away.stderr.startswith("raypft: the hub can't be reached (127.0.0.1: ")
    assert away.stderr.count("\n") == 1


def test_a_hub_that_can_not_be_reached_is_one_line(hub, tmp_path, silent_port):
    """Of the whole command, though its libraries would retry; how long it is waited for: test_hub.py."""
    env = hub.env | {"HF_ENDPOINT": f"http://127.0.0.1:{silent_port}"}
    done = command(env, tmp_path, "check", "profit", "task=sentiment", "backbone=o/m", "shots=2")
    assert done.returncode == 2
    assert done.stderr == (
        "raypft: backbone: o/m is not in the local cache and the hub can't be reached: 127.0.0.1: no answer within 6 "
        "seconds; or give a local folder\n"
    )


@pytest.mark.ray
def test_workers_take_the_commit_that_the_command_found(hub, tmp_path):
    """The branch is asked for once, whoever loads the model."""
    commit = hub.add("o/m", files("mbert"))
    words = ["run", "profit", "task=sentiment", "backbone=o/m", "shots=2", "seeds=1", "train.epochs=1", "test.limit=1"]
    done = command(hub.env, tmp_path, *words, "resources.workers=1", "--json")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").glob("*/seed-0/result.json")
    assert json.loads(path.read_text())["backbone"] == commit
    assert "\nbackbone: o/m\n" in path.parents[1].joinpath("job.yaml").read_text()
    asked = [access.path for access in hub.log if access.path.startswith("/api/models/o/m")]
    assert asked.count("/api/models/o/m") == 1
    assert len([name for name in hub.fetched() if name == "model.safetensors"]) == 1
