"""What starting costs: CPU-seconds of all processes of a command, on a tiny model and a handful of rows.

python benchmarks/start_up.py      # prints both
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
from safetensors.torch import save_model

from raypft.contract import tiny

TASK = """
about: rows made up
kind: choice
fields: {text: text}
label: {names: [negative, positive]}
languages: [en]
metric: accuracy
sources: {files: {files: {train: train, validation: validation, test: test}}}
patterns:
  gnnavi:
    text: "<demos>Review : {text} Sentiment : <slot>"
    verbalizer: {negative: bad, positive: good}
    source: made up
"""
TICKS = os.sysconf("SC_CLK_TCK")
SUBREAPER = 36
"""prctl's PR_SET_CHILD_SUBREAPER."""


@contextlib.contextmanager
def job(*overrides: str, rows: int = 32) -> Iterator[list[str]]:
    """The words behind `raypft run` or `raypft check` of a small job whose files lie in a folder for as long.

    Args:
        rows: of training; the other splits have 32.
    """
    with tempfile.TemporaryDirectory(prefix="rp-") as name:
        folder = Path(name)
        (folder / "made_up.yaml").write_text(TASK)
        for split in ("train", "validation", "test"):
            made = []
            for number in range(rows if split == "train" else 32):
                label = ("negative", "positive")[number % 2]
                text = f"the film was fine {number}"
                made.append({"id": f"{split}-{number}", "text": text, "label": label, "language": "en"})
            pa_parquet.write_table(pa.Table.from_pylist(made), folder / f"{split}.parquet")
        backbone = tiny.backbone("gpt2")
        backbone.config.save_pretrained(folder / "model")  # a model's own method loads DeepSpeed, which speaks up
        save_model(backbone.model, str(folder / "model" / "model.safetensors"))
        backbone.text.tokenizer.save_pretrained(folder / "model")
        settings = {
            "task": folder / "made_up.yaml",
            "backbone": folder / "model",
            "data.root": folder,
            "storage": folder / "runs",
            "seeds": 1,
            "shots": 4,
            "train.epochs": 1,
            "train.batch_size": 8,
            "train.max_tokens": 128,
        }
        yield ["gnnavi_gcn", *(f"{key}={value}" for key, value in settings.items()), *overrides]


def check_seconds() -> float:
    """Of `raypft check` of a causal job."""
    with job() as words:
        before = os.times()
        subprocess.run(_raypft("check", *words), check=True, capture_output=True)
        after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def first_step_seconds(workers: int = 2) -> float:
    """Of `raypft run` with workers, all its processes, until its first epoch (of one step) is told."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)  # so that no process of it leaves the tree below this one
    spent: dict[str, float] = {}
    with job(f"resources.workers={workers}") as words:
        command = subprocess.Popen(_raypft("run", *words, "--json"), stdout=subprocess.PIPE, text=True)
        assert command.stdout is not None
        for line in command.stdout:
            if line.startswith("{") and json.loads(line).get("event") == "epoch":
                spent = {name: _seconds(name) for name in _below(str(os.getpid()))}
        if command.wait() or not spent:
            raise SystemExit("start_up: the run of two workers failed; see above")
    return sum(spent.values())


def _raypft(*words: str) -> list[str]:
    return [sys.executable, "-m", "raypft.cli", *words]


def _stat(process: str) -> list[str]:
    """The fields of /proc/N/stat behind the name: state, parent, ...; none of a process that is gone."""
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _below(process: str) -> list[str]:
    """All processes below one."""
    parents = {entry.name: _stat(entry.name)[1:2] for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found, ahead = [], [process]
    while ahead:
        parent = ahead.pop()
        own = [name for name, of in parents.items() if of == [parent]]
        found += own
        ahead += own
    return found


def _seconds(process: str) -> float:
    """Of a process and the children it has waited for."""
    return sum(map(int, _stat(process)[11:15])) / TICKS


if __name__ == "__main__":
    print(f"check {check_seconds():.1f} CPU-s, two workers to the first step {first_step_seconds():.1f} CPU-s")
