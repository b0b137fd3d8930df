"""The changes that `make mutants` draws are small, whole, and never of what no test could ask for."""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
import sys

import mutants

SOURCE = '''"""A text, 1 + 1."""

LIMIT = 1 << 20
"""How much at once."""


@cached(maxsize=3)
def f(a: int = 1, *, b: Literal[2] = 2) -> float:
    """Adds 3."""
    ä: int = a + b
    if ä < 3 and not b:
        raise UserError(f"found {a + 1}; expected {2}" + "not so")
    tell(step=1 + 1)
    g(ä)
    return h(ä, scale=0.5, strict=True) if b else "a" + "b"
'''
EXPECTED = [
    "a + b -> (a - b)",
    "ä < 3 and not b -> (not (ä < 3 and (not b)))",
    "ä < 3 and not b -> (ä < 3 or not b)",
    "ä < 3 -> (ä <= 3)",
    "3 -> 4",
    "not b -> (b)",
    "g(ä) -> pass",
    "h(ä, scale=0.5, strict=True) if b else \"a\" + \"b\" -> ('a' + 'b' if b else h(ä, scale=0.5, strict=True))",
    "h(ä, scale=0.5, strict=True) -> (h(ä, strict=True))",
    "0.5 -> 1.5",
]


def test_what_is_changed_and_what_is_not():
    found = mutants.changes(SOURCE)
    assert [change.what for change in found] == EXPECTED
    for change in found:
        made = change.made(SOURCE)
        ast.parse(made)
        assert made != SOURCE
        assert made.replace(change.text, "", 1) != made
        before, after = (text.splitlines() for text in (SOURCE, made))
        assert before[: change.line - 1] == after[: change.line - 1]


def test_files_and_their_tests_are_there_and_every_change_can_be_read():
    for name, tests in itertools.chain.from_iterable(map(dict.items, mutants.ROOMS.values())):
        assert all((mutants.ROOT / f"tests/{test}.py").is_file() for test in tests)
        source = (mutants.ROOT / f"raypft/{name}.py").read_text()
        for change in mutants.changes(source)[::10]:
            ast.parse(change.made(source))


def test_the_same_seed_draws_the_same_from_all_rooms_in_turn():
    first = list(itertools.islice(mutants.drawn(list(mutants.ROOMS), 0), 30))
    assert first == list(itertools.islice(mutants.drawn(list(mutants.ROOMS), 0), 30))
    assert first != list(itertools.islice(mutants.drawn(list(mutants.ROOMS), 1), 30))
    assert [room for room, _, _ in first[:9]] == list(mutants.ROOMS)


MODULE = """def f(x):
    if x > 2:
        x -= 3
    g(x)
    return x
"""
TEST = """from raypft.made_up import f

def test_f():
    assert [f(x) for x in (0, 2, 3, 4)] == [0, 2, 0, 1]
"""


def test_what_no_test_notices_is_told_and_counted(tmp_path):
    """Five of six changes make another number; nothing hears of g."""
    for name in ("tests", "benchmarks", "tune_spaces", "examples", "docs", "raypft"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    module = tmp_path / "raypft" / "made_up.py"
    module.write_text("def g(x):\n    return x\n\n\n" + MODULE)
    (tmp_path / "raypft" / "__init__.py").write_text("")
    (tmp_path / "tests" / "test_made_up.py").write_text(TEST)
    code = (
        "import mutants, pathlib; mutants.ROOT = pathlib.Path(sys.argv[1]); mutants.LOADED = []; "
        "mutants.ROOMS = {'room': {'made_up': ['test_made_up']}}; del sys.argv[1:]; mutants.main()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert sorted(lines[:-2]) == ["raypft/made_up.py:8  g(x) -> pass"], done.stdout + done.stderr
    assert lines[-2:] == ["room       5 of 6", "mutants 6 noticed 5 score 83%"]
    assert module.read_text() == "def g(x):\n    return x\n\n\n" + MODULE
