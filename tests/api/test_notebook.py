"""The notebook of examples/ runs from its first cell to its last, on a tiny model in place of the one it names."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from raypft.contract import tiny

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jupyter's own
def test_the_quickstart_runs(tmp_path):
    made = tiny.backbone("llama")
    made.model.save_pretrained(tmp_path / "model")
    made.text.tokenizer.save_pretrained(tmp_path / "model")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without what a run put there"
    named = 0
    for cell in notebook.cells:
        cell.source, count = re.subn(r'^BACKBONE = ".*?"', 'BACKBONE = "model"', cell.source, flags=re.MULTILINE)
        named += count
    assert named == 1
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in shown if output.output_type == "error"]
    text = "".join(str(output) for output in shown)
    assert re.search(r"lora: \d+\.\d ± \d+\.\d in runs/lora-sentiment-8shot-model-", text)
    assert "image/png" in text
    assert "p(positive)" in text
    assert len(list((tmp_path / "runs").glob("*/seed-*/result.json"))) == 4
