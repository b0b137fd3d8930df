"""`raypft runs`: what lies in a storage, how two runs differ, and that nothing goes which something leans on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bucket import served
from fsspec.core import url_to_fs
from test_cli import call

from raypft.campaigns import stored
from raypft.campaigns.ledger import Ledger
from raypft.records import sealed, sealed_yaml
from raypft.storage import locked, path_of

JOB = """recipe: {recipe}
task: tasks/support.yaml
backbone: models/bert
method: {{name: {method}}}
protocol: fixed
shots: null
seeds: [0, 1]
train: {{lr: {lr}}}
storage: runs
"""


def make_run(folder: Path, means: list[float], recipe: str = "lora", method: str = "lora", lr: float = 0.1) -> Path:
    """A run's folder with so many finished seeds of two."""
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(sealed_yaml(JOB.format(recipe=recipe, method=method, lr=lr)))
    for seed, mean in enumerate(means):
        scores = {"en": mean, "de": mean}
        result = {
            **{"seed": seed, "cell": f"{seed:016x}", "metric": "accuracy@1", "scores": scores, "mean": mean},
            **{"metrics": {"accuracy@1": scores}, "sizes": {"train": 1}, "rows": {"en": 1}, "test_rows": "abc"},
            **{"trainable": 1, "seconds": 1.0},
        }
        (folder / f"seed-{seed}").mkdir()
        (folder / f"seed-{seed}" / "result.json").write_text(sealed(result))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/lora-a"), [80.0, 90.0])
    make_run(Path("runs/full-b"), [70.0], recipe="full", method="full", lr=0.2)
    return Path("runs")


def by_name(runs: Path) -> dict[str, stored.Stored]:
    return {one.folder.name: one for one in stored.stored(runs)}


def test_runs_are_listed_with_scores_seeds_and_states(runs, monkeypatch, capsys):
    found = by_name(runs)
    assert (found["lora-a"].state, found["lora-a"].done, found["lora-a"].asked) == ("finished", 2, 2)
    assert found["lora-a"].mean == 85.0
    assert found["lora-a"].std == pytest.approx(7.0711, abs=1e-4)
    assert found["lora-a"].size == sum(path.stat().st_size for path in (runs / "lora-a").rglob("*") if path.is_file())
    assert found["full-b"].state == "unfinished"
    assert call(monkeypatch, "runs") == 0
    told = capsys.readouterr().out
    assert "| lora-a | lora | support | bert | 2/2 | 85.0 ± 7.1 accuracy |" in told
    assert "| full-b | full | support | bert | 1/2 | 70.0 accuracy |" in told
    assert call(monkeypatch, "runs", "--json", "lora-a") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["mean"] == 85.0


def test_states_tell_what_became_of_a_run(runs):
    (runs / "full-b" / "seed-1").mkdir()
    (runs / "full-b" / "seed-1" / "failure.log").write_text("Traceback")
    assert by_name(runs)["full-b"].state == "failed"
    with locked(runs / "full-b"):
        assert by_name(runs)["full-b"].state == "at work"
    result = runs / "lora-a" / "seed-0" / "result.json"
    result.write_text(result.read_text().replace("80.0", "99.0"))
    assert by_name(runs)["lora-a"].state == "damaged"
    assert "was changed after it was written" in by_name(runs)["lora-a"].why
    (runs / "full-b" / "job.yaml").write_text("recipe: [")
    assert by_name(runs)["full-b"].state == "damaged"


def test_campaigns_are_listed_by_their_cells(runs):
    (runs / "mine-1").mkdir()
    (runs / "mine-1" / "campaign.yaml").write_text(sealed_yaml("name: mine\ntasks: {sst2: {}}\n"))
    ledger = Ledger(runs / "mine-1")
    for number, status in enumerate(("finished", "finished", "running")):
        ledger.note(cell=str(number), status=status, folder=f"runs/lora-a/seed-{number}", seed=number)
    found = by_name(runs)["mine-1"]
    assert (found.kind, found.recipe, found.state, found.done, found.asked) == ("campaign", "mine", "unfinished", 2, 3)


def test_two_runs_are_compared_by_keys_and_scores(runs, monkeypatch, capsys):
    keys, scores = stored.compared(runs / "lora-a", runs / "full-b")
    assert keys.rows == [["recipe", "lora", "full"], ["method.name", "lora", "full"], ["train.lr", "0.1", "0.2"]]
    assert scores.rows[0] == ["accuracy", "mean", "85.0 ± 7.1", "70.0 (n=1)", "-15.0"]
    assert call(monkeypatch, "runs", "compare", "lora-a", "runs/full-b") == 0
    assert "| train.lr | 0.1 | 0.2 |" in capsys.readouterr().out
    assert call(monkeypatch, "runs", "compare", "lora-a") == 2
    assert call(monkeypatch, "runs", "compare", "lora-a", "lora-z") == 2


def test_a_run_goes_only_with_yes_and_where_nothing_leans_on_it(runs, monkeypatch, capsys):
    assert call(monkeypatch, "runs", "remove", "lora-a") == 2
    assert "say --yes" in capsys.readouterr().err
    ticket = make_run(runs / "ltp-c", [], method="lottery, ticket: runs/lora-a")
    assert call(monkeypatch, "runs", "remove", "lora-a", "--yes") == 2
    assert "is needed by ltp-c (method.ticket); remove that, too, or keep it" in capsys.readouterr().err
    assert call(monkeypatch, "runs", "remove", "lora-a", "ltp-c", "--yes") == 0
    assert not ticket.exists()
    (runs / "mine-1").mkdir()
    (runs / "mine-1" / "campaign.yaml").write_text(sealed_yaml("name: mine\ntasks: {sst2: {}}\n"))
    Ledger(runs / "mine-1").note(cell="0", status="finished", folder="runs/full-b/seed-0")
    assert call(monkeypatch, "runs", "remove", "full-b", "--yes") == 2
    assert "needed by mine-1 (a campaign that has 1 cells there)" in capsys.readouterr().err
    assert (runs / "full-b").is_dir()
    assert call(monkeypatch, "runs", "remove", "mine-1", "full-b", "--yes") == 0
    assert list(runs.iterdir()) == []


def test_what_is_at_work_or_no_run_stays(runs, monkeypatch, capsys):
    with locked(runs / "lora-a"):
        assert call(monkeypatch, "runs", "remove", "lora-a", "--yes") == 2
    assert "a process is at work on" in capsys.readouterr().err
    (runs / "other").mkdir()
    for name in ("runs/other", "runs", ".", "lora-b", "/"):
        assert call(monkeypatch, "runs", "remove", name, "full-b", "--yes") == 2
        assert "is no run and no campaign" in capsys.readouterr().err
    assert len(list(runs.iterdir())) == 3


def test_an_empty_storage_and_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "runs") == 2
    assert "no folder runs" in capsys.readouterr().err
    Path("runs").mkdir()
    assert call(monkeypatch, "runs") == 0
    assert "nothing there yet" in capsys.readouterr().out


def test_no_heavy_library_is_loaded(runs):
    code = (
        "import sys; from raypft.cli import app\nfor words in (['runs'], ['runs', 'compare', 'lora-a', 'full-b'], "
        "['runs', 'remove', 'lora-a', '--yes']): app(words, standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'ray', 'datasets', 'deepspeed', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert not (runs / "lora-a").exists()
    shutil.rmtree(runs)


def test_an_object_store_is_listed_and_cleared_in_the_same_way(runs, monkeypatch, capsys):
    with served(monkeypatch) as bucket:
        system, _ = url_to_fs(bucket)
        for path in runs.rglob("*"):
            if path.is_file():
                system.put_file(str(path), f"{bucket}/{path}")
        assert call(monkeypatch, "runs", f"{bucket}/runs") == 0
        told = capsys.readouterr().out
        assert "| lora-a | lora | support | bert | 2/2 | 85.0 ± 7.1 accuracy |" in told
        assert "| full-b | full | support | bert | 1/2 | 70.0 accuracy |" in told
        here, there = by_name(runs), {one.folder.name: one for one in stored.stored(path_of(f"{bucket}/runs"))}
        assert {name: one.size for name, one in here.items()} == {name: one.size for name, one in there.items()}
        assert all(one.when > 0 for one in there.values())
        assert call(monkeypatch, "runs", "compare", f"{bucket}/runs/lora-a", "full-b") == 0
        assert call(monkeypatch, "runs", "remove", f"{bucket}/runs/lora-a", "--yes") == 0
        assert [one.folder.name for one in stored.stored(path_of(f"{bucket}/runs"))] == ["full-b"]
        assert call(monkeypatch, "runs", "remove", f"{bucket}/runs/lora-a", "--yes") == 2
        assert call(monkeypatch, "runs", f"{bucket}/nothing") == 2
        assert "no folder" in capsys.readouterr().err
