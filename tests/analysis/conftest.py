"""Finished runs to look at: a tiny task in two languages, tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import torch
import yaml
from toy import TASK, TEXT, rows

from raypft.config.load import make_job
from raypft.contract import tiny
from raypft.runs.prepare import prepare
from raypft.scale.run import run_jobs


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with the task, its rows and models."""
    folder = tmp_path_factory.mktemp("analysis")
    for name, task in (("toy", TASK), ("text", TEXT)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    for split, start, count in (("train", 0, 16), ("validation", 100, 8), ("test", 200, 12)):
        pa_parquet.write_table(pa.Table.from_pylist(rows(count, start)), folder / f"{split}.parquet")
    for kind in ("gpt2", "xlmr"):
        made = tiny.backbone(kind)
        with torch.no_grad():  # as they are drawn, all texts are nearly one to them
            for weight in made.model.parameters():
                weight.mul_(8 if weight.ndim > 1 else 1)
        made.model.save_pretrained(folder / kind)
        made.text.tokenizer.save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="session")
def ran(place):
    """Makes a run of the toy task, once for each name and its keys; its folder."""

    def make(recipe: str, method: Any, model: str = "gpt2", **more: Any) -> Path:
        causal = model == "gpt2"
        values = {
            "recipe": recipe,
            "task": f"{place}/toy.yaml",
            "pattern": "shown" if causal else "plain",
            "backbone": f"{place}/{model}",
            "method": method,
            "seeds": [3],
            "demos": int(causal),
            "data": {"root": str(place)},
            "storage": f"{place}/runs",
            "train": {"epochs": 2, "lr": 1e-2, "batch_size": 8, "max_tokens": 64},
        }
        prepared = prepare(make_job(values | more))
        if not (prepared.folder / "table.md").is_file():
            run_jobs([prepared], lambda event: None)
        return prepared.folder

    return make


@pytest.fixture
def finish(monkeypatch, capsys):
    """Calls the command line; its exit code, what it printed and what it complained about."""
    from test_cli import call

    def run(*words: Any) -> tuple[int, str, str]:
        code = call(monkeypatch, *map(str, words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
