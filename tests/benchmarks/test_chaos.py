"""A small campaign of kills, full disks and damaged files ends as if nothing had happened; the large one is
benchmarks/chaos.py itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
def test_what_goes_wrong_changes_no_number(seed):
    command = [sys.executable, str(CHAOS), "--events", "12", "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.search(r"^events (1[2-9]) lost 0 twice 0 same yes$", done.stdout, re.MULTILINE), done.stdout + done.stderr
