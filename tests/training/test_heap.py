"""Freed memory is kept, up to half as much again as was held."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from raypft import heap
from raypft.heap import own_pages

CODE = """
import json, torch
from raypft.training.ahead import ahead
from raypft.heap import HEAP, own_pages
from raypft.training.loader import Step

def blocks(megabytes):
    return [torch.ones(1 << 24) for _ in range(megabytes // 64)]

def held():
    return own_pages() >> 20

def between():
    list(next(ahead([Step(0.0, 1, iter([None]))], "cpu")).batches)

HEAP.keep(True)
between()
told = [held()]
for megabytes in (128, 1536):
    blocks(megabytes)
    told.append(held())
    between()
    told.append(held())
blocks(1024)
HEAP.give_back()
told.append(held())
print(json.dumps(told))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_until_it_piles_up():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    start, few, few_between, many, many_between, given_back = json.loads(run.stdout)
    assert few > start + 100
    assert few_between > start + 100, "it is kept for the next step"
    assert many > start + 1400
    assert many_between < start + 100
    assert given_back < start + 100


class Libc:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int] | tuple[int, int]] = []

    def mallopt(self, which: int, value: int) -> None:
        self.told.append((which, value))

    def malloc_trim(self, pad: int) -> None:
        self.told.append(("trim", pad))


def test_glibc_is_told_what_its_manual_calls_so(monkeypatch):
    """M_MMAP_MAX -4, M_MMAP_THRESHOLD -3, M_TRIM_THRESHOLD -1: no mapping of a block's own and no giving back, or of
    what is larger than 256 KiB its own and what is free above 1 MiB given back."""
    own = heap.Heap()
    own.libc = libc = Libc()  # type: ignore[assignment]
    own.limit = 5.0
    own.keep(True)
    assert (libc.told, own.limit) == ([(-4, 0), (-3, 262_144), (-1, 2_147_483_647)], 0.0)
    libc.told.clear()
    own.keep(False)
    assert libc.told == [(-4, 65_536), (-3, 262_144), (-1, 1_048_576)]


def test_what_piled_up_goes_back_and_the_limit_is_found_anew(monkeypatch):
    own, held = heap.Heap(), iter([1000.0, 268_436_956.0, 268_436_957.0, 2.0, 268_435_459.0, 268_435_460.0])
    own.libc = libc = Libc()  # type: ignore[assignment]
    monkeypatch.setattr(heap, "own_pages", lambda: next(held))
    own.settle()
    assert own.limit == 1.5 * 1000 + 2**28
    own.settle()
    assert libc.told == [], "as much as that may be held"
    own.settle()
    assert (libc.told, own.limit) == ([("trim", 0)], 0.0)
    for expected in (1, 1, 2):
        own.settle()
        assert len(libc.told) == expected
    own.libc = None
    for nothing in (own.settle, own.give_back, lambda: own.keep(True)):
        nothing()


def test_pages_of_files_are_not_this_processs_own(monkeypatch, tmp_path):
    (tmp_path / "statm").write_text("900 50 20 1 0 7 0\n")
    monkeypatch.setattr(heap, "STATM", tmp_path / "statm")
    assert own_pages() == 30 * os.sysconf("SC_PAGE_SIZE")
