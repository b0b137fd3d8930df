"""Keys that are kept with a campaign: what is finished is recognised without a job, and nothing stale is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_campaign import small
from test_cli import place, rewrite  # noqa: F401  (a fixture)

from raypft.campaigns.known_keys import FILE, Known, KnownKeys
from raypft.campaigns.load import load_campaign
from raypft.campaigns.state import CampaignState

LIGHT = "print(sorted({'torch', 'transformers', 'ray', 'datasets'} & set(sys.modules)))"


def keys_of(path: str) -> dict[str, dict[int, str]]:
    """The keys of every configuration by its label, from a campaign opened anew."""
    state = CampaignState(load_campaign(path))
    keys = {}
    for table_cell in state.campaign.table_cells():
        keys |= {configuration.label: configuration.keys for configuration in state.tried(table_cell)}
    return keys


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


def test_kept_keys_are_those_that_are_worked_out(place, monkeypatch):  # noqa: F811
    path = small(place)
    keys = keys_of(path)
    folder = load_campaign(path).folder
    kept = (folder / FILE).read_text()
    assert len(keys) == 3
    assert len({json.loads(line)["inputs"] for line in kept.splitlines()}) == 2, (
        "lr 0.01 of the search is the plain row"
    )
    assert len(kept.splitlines()) == 3, "each by the name that the campaign's file gives it"
    monkeypatch.setattr("raypft.campaigns.campaign.make_job", lambda *given: pytest.fail("a job was made"))
    monkeypatch.setattr("raypft.campaigns.load.check_jobs", lambda *given: None)
    assert keys_of(path) == keys
    assert (folder / FILE).read_text() == kept


@pytest.mark.parametrize("name", ["train.parquet", "mytask.yaml", "bert/model.safetensors", "bert/config.json"])
def test_a_changed_file_is_looked_at_again(place, name):  # noqa: F811
    path = small(place)
    keys = keys_of(path)
    folder = load_campaign(path).folder
    touch(place / name)
    assert keys_of(path) == keys, "touched, not changed"
    assert len((folder / FILE).read_text().splitlines()) == 3 + 2


def test_changed_data_has_other_keys(place):  # noqa: F811
    path = small(place)
    before = keys_of(path)
    rewrite(place, "train", text="it was fine")
    after = keys_of(path)
    assert all(before[label][seed] != key for label, keys in after.items() for seed, key in keys.items())


def test_other_values_are_other_inputs(tmp_path):
    known = KnownKeys(tmp_path)
    values = {"task": "sentiment", "backbone": str(tmp_path), "method": "full", "train": {"lr": 1e-4}}
    (tmp_path / "config.json").write_text("{}")
    first = known.inputs(values)
    assert first is not None
    assert known.inputs(values) == first
    assert known.inputs({**values, "train": {"lr": 2e-4}}) != first
    assert known.inputs({**values, "task": "xnli"}) is None, "from the hub"
    assert known.inputs({**values, "backbone": "nowhere"}) is None
    assert known.inputs({"task": "sentiment"}) is None
    known.add(first, Known("job", "runs/x", {0: "abc"}))
    with (tmp_path / FILE).open("a") as stream:
        stream.write("no json\n[]\n" + json.dumps({"inputs": "x"}) + "\n")
    assert KnownKeys(tmp_path).get(first) == Known("job", "runs/x", {0: "abc"})
    assert KnownKeys(tmp_path).get(None) is None


def test_plan_and_report_of_a_finished_campaign_load_no_torch(tmp_path):
    folder = Path(__file__).parents[1] / "legacy" / "folder"
    copy = tmp_path / "folder"
    shutil.copytree(folder, copy)
    for file in [*copy.rglob("*.yaml"), *copy.rglob("*.jsonl")]:
        file.write_text(file.read_text().replace("HERE", str(copy)))
    code = f"import sys; from raypft.cli import app; app(sys.argv[1:], standalone_mode=False); {LIGHT}"

    def loaded(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=copy, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[-1]

    (campaign,) = copy.glob("runs/layers-*")
    loaded("plan", "layers.yaml")  # of an earlier version, which kept no keys
    assert loaded("plan", "layers.yaml") == "[]"
    assert loaded("report", str(campaign.relative_to(copy))) == "[]"
