"""What may import what, read from the source: the ladder of the rooms, no circle, libraries behind their walls; and
that what needs no model loads none (docs/architecture.md)."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raypft

ROOT = Path(raypft.__file__).parent
WALLS = {
    "ray": ("scale/", "cluster/nodes.py", "cluster/check/probe.py", "cluster/check/validate.py"),
    "deepspeed": ("scale/",),
    "transformers": ("backbones/", "contract/tiny.py"),
    "peft": ("backbones/",),
    "bitsandbytes": ("backbones/four_bit.py",),
    "httpx2": ("hub.py",),
    "mlflow": ("runs/trackers.py",),
    "tensorboardX": ("runs/trackers.py",),
    "wandb": ("runs/trackers.py",),
}
TORCH_FREE = ("tasks/", "report/", "data/", "campaigns/", "cluster/", "cli/", "config/job.py", "config/load.py")
LADDER = (
    {""},  # raypft/__init__.py, the public API
    {"cli"},
    {"cluster", "contract"},
    {"scale"},
    {"campaigns"},
    {"analysis"},
    {"runs"},
    {"training"},
    {"config"},
    {"methods", "readouts"},
    {"backbones", "report", "data"},
    {"tasks", "shards", "records"},
    {"catalogue", "schema", "storage", "batch", "hub"},
    {"encoded", "errors", "heap", "progress", "_version"},
)
"""Rooms from the top floor down; a file imports from its own room and from the floors below."""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Path below raypft/ to its syntax tree."""
    paths = sorted(ROOT.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every module that is imported anywhere in a file, and the name that is taken from it, empty where it is whole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.module, alias.name


def packages(tree: ast.AST) -> set[str]:
    """Top-level packages imported anywhere below a node."""
    return {module.split(".")[0] for module, _ in imported(tree)}


@functools.cache
def arrows() -> dict[str, set[str]]:
    """File to the files of the package that it imports, imports for types and inside functions counted."""
    file_of = {}
    for path in sources():
        parts = ("raypft", *Path(path).with_suffix("").parts)
        file_of[".".join(part for part in parts if part != "__init__")] = path
    found: dict[str, set[str]] = {}
    for path, tree in sources().items():
        files = set()
        for module, name in imported(tree):
            file = file_of.get(f"{module}.{name}", file_of.get(module))
            if file is not None and file != path:
                files.add(file)
        found[path] = files
    return found


def room(path: str) -> str:
    """The folder of a file, of a file at the top its name."""
    head, *below = path.split("/")
    return head if below else head.removesuffix(".py").removesuffix("__init__")


def floor(path: str) -> int:
    """How many floors from the top a file lies."""
    return next(number for number, rooms in enumerate(LADDER) if room(path) in rooms)


@pytest.mark.parametrize(("library", "homes"), WALLS.items())
def test_a_library_stays_behind_its_wall(library, homes):
    users = {path for path, tree in sources().items() if library in packages(tree)}
    assert {path for path in users if not path.startswith(homes)} == set()
    assert users, f"{library} is imported nowhere: is the wall still needed?"


def test_every_room_stands_on_a_floor():
    rooms = {room(path) for path in sources()}
    assert rooms == set().union(*LADDER)


def test_imports_go_down_the_ladder():
    wrong = []
    for path, files in arrows().items():
        for file in files:
            if room(file) != room(path) and floor(file) <= floor(path):
                wrong.append(f"{path} imports {file}")
    assert wrong == []


def test_no_file_imports_itself_through_others():
    left = dict(arrows())
    while free := [path for path, files in left.items() if not files & set(left)]:
        for path in free:
            del left[path]
    assert left == {}, "these files are in a circle, or import one that is"


def test_parts_without_tensors_name_no_torch_outside_functions():
    users = set()
    for path, tree in sources().items():
        statements: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if path.startswith(TORCH_FREE) and "torch" in packages(ast.Module(statements, [])):
            users.add(path)
    assert users == set()


def test_a_comprehension_has_one_for_and_at_most_one_if():
    wrong = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if not isinstance(node, COMPREHENSIONS):
                continue
            conditions = sum(len(generator.ifs) for generator in node.generators)
            inner = [below for below in ast.walk(node) if isinstance(below, COMPREHENSIONS) and below is not node]
            if len(node.generators) > 1 or conditions > 1 or inner:
                wrong.append(f"{path}:{node.lineno}")
    assert wrong == []


LIBRARIES = ("torch", "transformers", "ray", "datasets", "deepspeed", "peft")
MODEL_CODE = ("transformers.modeling_utils", "torch._dynamo", "deepspeed", "peft", "ray")


def loaded_by(code: str, folder: Path = ROOT.parent, heavy: tuple[str, ...] = LIBRARIES) -> str:
    """Which heavy libraries a process has loaded after some code."""
    asked = f"import sys; {code}; print(sorted({set(heavy)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "modules",
    [
        "raypft.tasks.load, raypft.tasks.prompts, raypft.tasks.metrics, raypft.data.sampling, raypft.data.sources",
        "raypft.config.job, raypft.config.load, raypft.campaigns.load, raypft.campaigns.state",
        "raypft.report.campaign, raypft.report.table, raypft.runs.results, raypft.runs.table, raypft.runs.scores",
        "raypft.cluster.feasible, raypft.cluster.submit, raypft.scale.cell_queue, raypft.scale.resources",
        "raypft.cli.app, raypft.cli.cluster, raypft.methods, raypft.readouts, raypft.backbones.fetch",
    ],
)
def test_reading_and_reporting_load_no_heavy_library(modules):
    assert loaded_by(f"import {modules}") == "[]"


def test_a_process_that_encodes_loads_no_model_code():
    methods = "lora, gnnavi, lottery, prefix, soft_prompt, adapter, bitfit, full"
    loads = (
        f"import raypft.scale.encoding; from raypft.methods import {methods}; from raypft.readouts import verbalizer"
    )
    assert loaded_by(loads, heavy=MODEL_CODE) == "[]"


@pytest.mark.parametrize("what", ["tasks", "methods", "readouts", "analyses", "backbones", "recipes"])
def test_lists_load_no_heavy_library(what):
    assert loaded_by(f"from raypft.cli import app; app(['list', '{what}'], standalone_mode=False)") == "[]"
