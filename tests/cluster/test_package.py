"""The working directory as a package: what is in it, its name, its limit."""

from __future__ import annotations

import os
import subprocess
import time
import zipfile
from io import BytesIO

import pytest

from raypft.cluster.package import pack
from raypft.errors import UserError


def test_a_package_takes_what_git_knows_or_would_know_and_is_named_by_its_content(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in (
        "kept.py",
        "sub/also.txt",
        "ignored.txt",
        "weights.safetensors",
        "runs/result.json",
        ".venv/bin/python",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("ignored.txt\n")
    first = pack(tmp_path)
    assert zipfile.ZipFile(BytesIO(first.content)).namelist() == [".gitignore", "kept.py", "sub/also.txt"]
    assert (first.commit, first.dirty) == ("none", True)
    os.utime(tmp_path / "kept.py", (0, 0))
    assert pack(tmp_path).name == first.name
    (tmp_path / "kept.py").write_text("changed")
    assert pack(tmp_path).name != first.name


def test_a_package_above_the_limit_is_refused_before_it_is_zipped(tmp_path):
    with (tmp_path / "big.dat").open("wb") as file:
        file.truncate(91 * 2**20)
    (tmp_path / "small.txt").write_text("x")
    start = time.monotonic()
    with pytest.raises(
        UserError,
        match=r"holds 91 MiB, the job server takes 90; "
        r"largest, in MiB: big.dat 91.0, small.txt 0.0; name them in .gitignore",
    ):
        pack(tmp_path)
    assert time.monotonic() - start < 1
    with pytest.raises(UserError, match=r"package: no folder .*nowhere; give --working-dir"):
        pack(tmp_path / "nowhere")
