"""`raypft doctor`: a line a part in any environment, within seconds, without a secret, exit code 2 only where no run
works."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from raypft.cli import doctor

BROKEN = {
    "RAY_ADDRESS": "ray://someone:s3cr3t@127.0.0.1:9",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_OFFLINE": "0",
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
    "RAYPFT_CLUSTER": "{no json",
    "HF_HOME": "/nowhere/at all",
    "OMP_NUM_THREADS": "1",
}


def asked(*words: str, **environment: str) -> tuple[int, list[str], str]:
    """Exit code, lines and errors of a command."""
    command = [sys.executable, "-m", "raypft.cli", "doctor", *words]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_what_there_is_is_told_and_it_ends_with_ok(tmp_path):
    code, lines, errors = asked(f"storage={tmp_path}/runs", RAY_ADDRESS="")
    assert (code, errors) == (0, "")
    told = {line.partition(":")[0] for line in lines}
    assert {"raypft", "packages", "extra s3", "CPUs", "memory", "hub", "storage", "Ray", "git"} <= told
    assert told & {"GPUs", "torch"}, "on a busy machine torch may not be loaded in time, which is told"
    assert lines[-1] == "ok" or lines[-1].startswith("lacking: ")
    assert f"storage: {tmp_path}/runs can be written" in lines
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_where_all_is_broken_each_thing_is_a_line_and_no_secret_is_shown(tmp_path):
    began = time.monotonic()
    code, lines, errors = asked("storage=s3://key:s3cr3t@bucket/x", **BROKEN)
    assert time.monotonic() - began < 30, "bounded waits; this machine may be busy"
    assert (code, errors) == (0, "")
    shown = "\n".join(lines)
    assert "s3cr3t" not in shown
    assert "hf_abc" not in shown
    lacking = {line.split(": ")[1] for line in lines if line.startswith("lacking: ")}
    assert {"Ray", "storage"} <= lacking


def test_a_part_that_hangs_or_fails_is_a_line():
    def hangs():
        time.sleep(60)
        yield doctor.Found("a", "never")

    def fails():
        yield doctor.Found("b", "half")
        raise RuntimeError("a driver\nin many lines")

    found = doctor.looked_at({"a": hangs, "b": fails}, patience=0.2)
    assert [(one.part, one.text, one.lack) for one in found] == [
        ("a", "no answer within 0 s", "it may work, but slowly; look at it alone"),
        ("b", "half", ""),
        ("b", "could not be looked at", "a driver"),
    ]


def test_a_torch_that_can_not_be_loaded_is_told_with_what_mends_it(monkeypatch, tmp_path, capsys):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = doctor._torch()
    assert found.broken
    assert found.text == "can't be loaded: ImportError: libcudart.so.12: cannot open shared object file"
    assert "pip install" in found.lack


def test_a_package_that_is_missing_or_of_another_version_is_told(monkeypatch):
    versions = {"transformers": "1.0", "safetensors": None}
    before = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, before(name)))
    lacks = {one.part: one for one in doctor._versions() if one.lack}
    assert lacks["safetensors"].broken
    assert not lacks["transformers"].broken
    assert "pip install 'transformers" in lacks["transformers"].lack


@pytest.mark.parametrize("words", [["runs"], ["storage="], ["storge=x"]])
def test_other_words_are_refused(words):
    code, _, errors = asked(*words)
    assert code == 2
    assert "expected storage=FOLDER" in errors
