"""What a killed command leaves in a storage goes with the next one that uses Ray there, and nothing of a living one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest

from raypft.config.load import load_job
from raypft.scale import data, session
from raypft.scale.run import executors
from raypft.storage import BEGUN, owned, remove_left

LEFT = ".ray/attempt-3"


def killed_while_it_encodes(storage: Path) -> None:
    """What a process does in the next test."""
    data._encode_from = lambda *told: os.kill(os.getpid(), signal.SIGKILL)
    with owned(storage / LEFT):
        works = [(pa.table({}), ("", ""), storage / ".encoded" / "sample" / "train.arrow")]
        data._encode_on_ray(works, None)  # type: ignore[arg-type]


def everything(storage: Path) -> set[str]:
    return {str(path.relative_to(storage)) for path in (*storage.glob(".encoded/*"), *storage.glob(".ray/*"))}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_command_with_workers_removes_what_no_process_owns(workers, tmp_path, monkeypatch):
    process = multiprocessing.get_context("fork").Process(target=killed_while_it_encodes, args=(tmp_path,))
    process.start()
    process.join()
    left = everything(tmp_path)
    assert len(left) == 2, "the killed process's folders"
    monkeypatch.setattr(session, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(session, "check_resources", lambda resources: None)
    words = ["task=sst2", "backbone=x", f"storage={tmp_path}", f"resources.workers={workers}"]
    job = load_job("profit", words).job
    (tmp_path / ".encoded" / "sample").mkdir()
    with owned(tmp_path / ".encoded/4-5.rows"), owned(tmp_path / ".ray/attempt-6"):
        alive = everything(tmp_path) - left
        with executors([job]):
            pass
        assert everything(tmp_path) == alive | left, "it may be about to get its lock"
        for name in alive | left:
            os.utime(tmp_path / name, (0, time.time() - 2 * BEGUN))
        with executors([job]):
            pass
        assert everything(tmp_path) == (alive if workers else alive | left)


def test_what_is_owned_is_left_when_its_process_ends_in_peace_until_someone_looks(tmp_path):
    with owned(tmp_path / "a.rows") as folder:
        assert folder.is_dir()
    os.utime(folder, (0, time.time() - 2 * BEGUN))
    remove_left(tmp_path, "*.other")
    assert folder.is_dir()
    remove_left(tmp_path, "*.rows")
    assert not folder.exists()
