"""Freed memory is kept, up to half as much again as was held."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import json, torch
from raypft.training.ahead import ahead
from raypft.training.heap import HEAP, own_pages
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
