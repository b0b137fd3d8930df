"""Which library may be imported where (DESIGN section 2), read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import raypft

ROOT = Path(raypft.__file__).parent
WALLS = {
    "ray": ("scale/", "cluster/nodes.py", "cluster/check/probe.py", "cluster/check/validate.py"),
    "deepspeed": "scale/",
    "transformers": "backbones/",
    "peft": "backbones/",
    "torch_geometric": "methods/gnnavi.py",
}
TORCH_FREE = ("tasks/", "report/", "config/job.py", "data/", "campaigns/")


def imports(node: ast.AST) -> set[str]:
    """Top-level packages imported anywhere below a node."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            found |= {alias.name.split(".")[0] for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom) and not inner.level and inner.module:
            found.add(inner.module.split(".")[0])
    return found


def sources() -> dict[str, ast.Module]:
    """Path below raypft/ to its syntax tree."""
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize(("library", "home"), WALLS.items())
def test_a_library_stays_behind_its_wall(library, home):
    users = {path for path, tree in sources().items() if library in imports(tree)}
    assert {path for path in users if not path.startswith(home)} == set()
    assert users or library == "peft", f"{library} is imported nowhere: is the wall still needed?"


def test_parts_without_tensors_name_no_torch_at_all():
    users = {path for path, tree in sources().items() if path.startswith(TORCH_FREE) and "torch" in imports(tree)}
    assert users == set()


def test_reading_tasks_jobs_and_rows_loads_no_heavy_library():
    modules = "tasks.task, tasks.prompts, tasks.metrics, config.job, data.sampling, data.sources".replace(
        " ", " raypft."
    )
    code = f"import sys; import raypft.{modules}; print(sorted({{'torch', 'transformers', 'ray', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
