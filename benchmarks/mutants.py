"""How many small changes of the code the fast tests notice.

    OMP_NUM_THREADS=1 python benchmarks/mutants.py [--minutes 10] [--seed 0] [--room NAME] [--list]

Changes are drawn from the functions of a few rooms, room by room in turn, and made one at a time in a copy of the
package in a temporary folder; the test files that belong to the module then run there, each change in a process of its
own, forked from one that has the libraries loaded. A change at which no test fails is printed; the last line is the
score.

Operators: comparisons, arithmetic, and/or, not, numbers and truth values, swapped branches, removed calls and keywords.
What changes nothing that a test could ask for is not touched: texts (docstrings, messages, what is raised), types,
decorators, what tells and times, and constants of a module, which say how much is done at once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import itertools
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 150
"""CPU-seconds after which the tests of a change are stopped; it counts as noticed, as they end without it."""
WORDS = ["-m", "not ray and not cluster and not gpu", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
LOADED = [
    "torch", "transformers", "peft", "pyarrow.dataset", "pyarrow.parquet", "safetensors.torch", "sklearn.metrics",
    "seqeval.metrics", "hypothesis", "pydantic", "typer", "jinja2", "yaml", "statsmodels.api", "torch_geometric.nn",
    *(f"transformers.models.{kind}.modeling_{kind}" for kind in ("bert", "xlm_roberta", "gpt2", "llama", "t5", "mt5")),
]  # fmt: skip
ROOMS: dict[str, dict[str, list[str]]] = {
    "methods": {
        "methods/_tickets": ["methods/test_tickets", "methods/test_lottery", "methods/test_ticket_search"],
        **{
            f"methods/{name}": [f"methods/test_{name}"]
            for name in ("adapter", "gnnavi", "ia3", "lora", "lottery", "prefix", "soft_prompt", "ticket_search")
        },
        "methods/bitfit": ["methods/test_ia3"],
    },
    "readouts": {
        "readouts/_decoding": ["readouts/test_decoding"],
        "readouts/span": ["readouts/test_span"],
        "readouts/head": ["readouts/test_readouts"],
        "readouts/text": ["backbones/test_seq2seq"],
        "readouts/verbalizer": ["readouts/test_readouts", "analysis/test_demonstrations"],
        "readouts/mlm": ["methods/test_ticket_search"],
        "readouts/base": ["readouts/test_readouts", "runs/test_cell"],
    },
    "metrics": {"tasks/metrics": ["tasks/test_metrics"], "runs/scores": ["runs/test_cell"]},
    "sampling": {"data/sampling": ["data/test_sampling"], "data/streaming": ["data/test_streaming_order"]},
    "encoding": {
        "training/encode": ["training/test_encode"],
        "training/rows": ["training/test_encode"],
        "tasks/prompts": ["tasks/test_prompts", "golden/test_golden"],
        "tasks/kinds/tags": ["training/test_encode", "data/test_columns", "data/test_formats"],
        "tasks/kinds/span": ["training/test_encode", "data/test_columns", "data/test_formats"],
        "encoded": ["training/test_encode", "backbones/test_last_block"],
    },
    "loaders": {
        "training/loader": ["training/test_loader", "training/test_loop"],
        "training/room": ["training/test_loader"],
        "training/flow": ["data/test_streaming_order"],
        "training/ahead": ["training/test_loop", "training/test_heap"],
        "batch": ["training/test_loader"],
    },
    "loop": {
        "training/loop": ["training/test_loop"],
        "training/stepper": ["training/test_stepper", "training/test_loop", "training/test_states"],
        "training/dropout": ["training/test_dropout", "training/test_loop"],
        "training/states": ["training/test_states"],
        "heap": ["training/test_heap"],
        "training/kept": ["training/test_states"],
        "training/checkpoint": ["training/test_states", "training/test_loop"],
        "runs/cell": ["runs/test_cell"],
    },
    "selection": {
        "report/groups": ["report/test_campaign_tables"],
        "campaigns/ledger": ["campaigns/test_ledger"],
        "campaigns/search_space": ["campaigns/test_search_space"],
        "scale/tune/search": ["scale/test_search"],
    },
    "tables": {
        "report/table": ["runs/test_table", "report/test_campaign_tables"],
        "report/campaign": ["report/test_campaign_tables"],
        "report/layout": ["report/test_campaign_tables"],
        "report/paper": ["report/test_campaign_tables"],
        "report/comparing": ["report/test_comparing"],
        "report/significance": ["report/test_significance"],
        "runs/table": ["runs/test_table"],
    },
}
"""Room to module to the test files that belong to it."""

COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COUNTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
JOINED = {ast.And: ast.Or, ast.Or: ast.And}
TELLING = {"tell", "at", "end", "warn", "print", "UserError", "annotate", "perf_counter", "process_time"}
"""Functions that tell or time: nothing in their calls is changed."""
HINTS = {
    "strict", "encoding", "maxsize", "exist_ok", "parents", "missing_ok", "non_blocking", "stacklevel", "fused",
    "dtype", "device", "repr", "ignore_errors", "confidence_level",
    "max_chunksize", "buffer_size",
}  # fmt: skip
"""Keywords that guard, hint or name a default; without them code does the same to what a test can give it."""


class Change(NamedTuple):
    """A change of a source: what stands from `start` to `end` becomes `text`; line and what are told."""

    line: int
    what: str
    start: int
    end: int
    text: str

    def made(self, source: str) -> str:
        """The source with it."""
        content = source.encode()
        return (content[: self.start] + self.text.encode() + content[self.end :]).decode()


def changes(source: str) -> list[Change]:
    """The small changes of the functions of a source, in its order."""
    begins = [0, *itertools.accumulate(len(line) for line in source.encode().splitlines(keepends=True))]
    found: list[Change] = []

    def change(node: ast.expr | ast.stmt, new: ast.AST | str) -> None:
        text = new if isinstance(new, str) else ast.unparse(new)
        text = f"({text})" if isinstance(new, ast.expr) else text
        start, end = (begins[line - 1] + column for line, column in _place(node))
        old = source.encode()[start:end].decode()
        found.append(Change(node.lineno, f"{' '.join(old.split())} -> {text}", start, end, text))

    for node in _changeable(ast.parse(source)):
        match node:
            case ast.Compare(left=left, ops=[op], comparators=right) if type(op) in COMPARED:
                change(node, ast.Compare(left, [COMPARED[type(op)]()], right))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in COUNTED and not _is_text(left, right):
                change(node, ast.BinOp(left, COUNTED[type(op)](), right))
            case ast.AugAssign(target=target, op=op, value=value) if type(op) in COUNTED:
                change(node, ast.AugAssign(target, COUNTED[type(op)](), value))
            case ast.BoolOp(op=op, values=values):
                change(node, ast.BoolOp(JOINED[type(op)](), values))
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                change(node, operand)
            case ast.Constant(value=bool() as value):
                change(node, str(not value))
            case ast.Constant(value=int() | float() as value):
                change(node, str(value + 1))
            case ast.IfExp(test=test, body=body, orelse=other):
                change(node, ast.IfExp(test, other, body))
            case ast.If(test=test) | ast.While(test=test):
                change(test, ast.UnaryOp(ast.Not(), test))
            case ast.Expr(value=ast.Call()):
                change(node, "pass")
            case ast.Call(func=function, args=given, keywords=keywords):
                for keyword in keywords:
                    if keyword.arg is not None and keyword.arg not in HINTS:
                        others = [other for other in keywords if other is not keyword]
                        change(node, ast.Call(function, given, others))
    return found


def _place(node: ast.expr | ast.stmt) -> tuple[tuple[int, int], tuple[int, int]]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _changeable(node: ast.AST, inside: bool = False) -> Iterator[ast.AST]:
    """What may be changed: all in the bodies of functions but texts, types, and what is raised, told or asserted."""
    match node:
        case ast.FunctionDef(name="__repr__") | ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.arg():
            return
        case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))) if name in TELLING:
            return
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in TELLING:
            return
        case ast.keyword(arg=name) if name in HINTS:
            return
        case ast.FunctionDef(body=parts):
            inside = True
        case ast.AnnAssign(value=value):
            parts = [value] if value is not None else []
        case _:
            if inside:
                yield node
            parts = ast.iter_child_nodes(node)
    for part in parts:
        yield from _changeable(part, inside)


def _is_text(*sides: ast.expr) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )


def drawn(rooms: list[str], seed: int) -> Iterator[tuple[str, str, Change]]:
    """Room, module and change, room after room, each of a room once."""
    generator, decks = random.Random(seed), {}
    for room in rooms:
        every: list[tuple[str, Change]] = []
        for name in ROOMS[room]:
            every += ((name, one) for one in changes((ROOT / f"raypft/{name}.py").read_text()))
        generator.shuffle(every)
        decks[room] = iter(every)
    while decks:
        for room in list(decks):
            if (card := next(decks[room], None)) is None:
                del decks[room]
            else:
                yield room, *card


class Copy:
    """The project in a temporary folder, where changes are made."""

    def __init__(self, folder: Path) -> None:
        self.root, self.output = folder / "project", folder / "output"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "site", "folder")
        for name in ("raypft", "tests", "benchmarks", "tune_spaces", "examples", "docs"):
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", self.root)

    def noticed(self, files: list[str]) -> bool:
        """Whether the tests of some files fail, or do not end, in a process forked from this one."""
        child = os.fork()
        if not child:
            self._test(files)
        until = time.monotonic() + 10 * LIMIT  # what waits uses no CPU
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status != 0
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True

    def _test(self, files: list[str]) -> None:
        """Run tests, and end this process."""
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
            output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(output, number)
            os.chdir(self.root)
            os.environ["PYTHONPATH"] = str(self.root)
            sys.path = [
                str(self.root),
                *(path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "benchmarks")),
            ]
            words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *WORDS]
            code = int(pytest.main([*words, *(f"tests/{name}.py" for name in files)]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @contextlib.contextmanager
    def changed(self, name: str, change: Change) -> Iterator[None]:
        """With a change made."""
        file = self.root / f"raypft/{name}.py"
        source = file.read_text()
        before = file.stat()
        file.write_text(change.made(source))
        try:
            yield
        finally:
            file.write_text(source)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # what was compiled of it holds again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--room", choices=ROOMS, action="append")
    parser.add_argument("--list", action="store_true", help="print the changes and make none")
    given = parser.parse_args()
    rooms = given.room or list(ROOMS)
    if given.list:
        for room, name, change in drawn(rooms, given.seed):
            print(f"{room:10} raypft/{name}.py:{change.line}  {change.what}")
        return
    until = time.monotonic() + 60 * given.minutes
    for name in LOADED:
        importlib.import_module(name)
    made, noticed = dict.fromkeys(rooms, 0), dict.fromkeys(rooms, 0)
    with tempfile.TemporaryDirectory() as folder:
        copy, checked = Copy(Path(folder)), set[tuple[str, ...]]()
        for room, name, change in drawn(rooms, given.seed):
            if time.monotonic() > until:
                break
            files = ROOMS[room][name]
            if tuple(files) not in checked:  # which also compiles what is the same for all
                if copy.noticed(files):
                    sys.exit(f"{copy.output.read_text()}\n{', '.join(files)}: fail without a change")
                checked.add(tuple(files))
            sys.dont_write_bytecode = True
            with copy.changed(name, change):
                found = copy.noticed(files)
            sys.dont_write_bytecode = False
            made[room], noticed[room] = made[room] + 1, noticed[room] + found
            if not found:
                print(f"raypft/{name}.py:{change.line}  {change.what}", flush=True)
    for room in rooms:
        print(f"{room:10} {noticed[room]} of {made[room]}")
    count, found = sum(made.values()), sum(noticed.values())
    print(f"mutants {count} noticed {found} score {100 * found / max(1, count):.0f}%")


if __name__ == "__main__":
    main()
