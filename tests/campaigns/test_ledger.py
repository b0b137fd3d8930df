"""The ledger: what a killed writer leaves is read; what can't be read is set aside; 100,000 cells open quickly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from raypft.campaigns import ledger as ledger_module
from raypft.campaigns.ledger import BAD, FILE, Ledger
from raypft.records import sealed


def entry(number: int, **more: object) -> dict:
    """A finished cell of a search."""
    chosen = {"method.layer": number % 7, "train.lr": 1e-3}
    values = {
        "cell": f"{number:016x}",
        "status": "finished",
        "seed": number % 5,
        "config": f"c{number // 5}",
        "study": "s",
        "values": chosen,
    }
    return {
        **values,
        "folder": f"runs/gnnavi_gcn-sst2-5shot-gpt2-xl-{number // 5:08x}/seed-{number % 5}",
        "dev": 81.25,
        "reason": None,
        "time": 1.5,
        **more,
    }


def test_the_last_line_of_a_cell_counts_and_its_place_is_that_of_the_first(tmp_path):
    ledger = Ledger(tmp_path)
    for number in range(10):
        ledger.note(**entry(number, status="running", dev=None))
    ledger.note(cell=entry(0)["cell"], status="failed", reason="the loss is nan")
    ledger.note(cell=entry(7)["cell"], status="finished", dev=50.0)
    again = Ledger(tmp_path)
    assert again.get(entry(0)["cell"])["reason"] == "the loss is nan"
    again.note(cell=entry(0)["cell"], status="running")
    assert Ledger(tmp_path).get(entry(0)["cell"])["reason"] is None, "that was the attempt before"
    assert again.get(entry(7)["cell"])["seed"] == 2
    assert again.get("nowhere") == {}
    assert list(again.study("s")) == ["c0", "c1"]
    assert [known["dev"] for known in again.study("s")["c1"]] == [None, None, 50.0, None, None]
    assert again.study("other") == {}


def test_a_folder_is_made_and_a_line_is_short_and_says_words_as_they_are(tmp_path):
    ledger = Ledger(tmp_path / "new" / "campaign")
    ledger.note(**entry(1, status="running", reason="für nichts"))
    raw = ledger.log.read().decode()
    assert raw.count("\n") == 1
    assert '"reason":"für nichts",' in raw
    assert raw.count(" ") == len(["für nichts", '"check": '])


def test_times_are_in_milliseconds_and_lines_are_added_to_what_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module.time, "time", lambda: 1.23456)
    Ledger(tmp_path).note(**entry(1))
    before = (tmp_path / FILE).read_bytes()
    place = (tmp_path / FILE).stat().st_ino
    Ledger(tmp_path).note(**entry(2))
    assert (tmp_path / FILE).stat().st_ino == place, "it is not written anew: another may be reading"
    assert (tmp_path / FILE).read_bytes().startswith(before)
    assert [known["time"] for known in Ledger(tmp_path)] == [1.235, 1.235]


def test_a_cell_began_when_it_was_last_said_to_be_running(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.note(**entry(1, status="running"))
    began = ledger.entries[entry(1)["cell"]]["time"]
    ledger.note(**entry(1, status="finished"))
    ledger.note(**entry(2, status="finished"))
    assert ledger.began == Ledger(tmp_path).began == {entry(1)["cell"]: began}


@pytest.mark.parametrize(
    "damage",
    [
        *(
            b'{"cell": "a", "sta',
            b"\x00\xff\x00",
            b"[1, 2]",
            b'{"cell": "a", "status": "great"}',
            b'{"status": "finished"}',
        ),
        *(b'{"cell": "a", "status": "failed", "reason": 1}', b'{"cell": "a", "status": "finished", "folder": ["x"]}'),
        *(b'{"cell": "a", "status": "finished", "values": "x"}', b'{"cell": "a", "status": "finished", "seed": "x"}'),
        *(
            b'{"cell": "a", "status": ["finished"]}',
            b"[" * 100_000,
            sealed(entry(7)).replace("81.25", "91.25").encode(),
        ),
    ],
)
def test_a_corrupt_line_is_set_aside_told_and_the_rest_is_used(damage, tmp_path):
    lines = [json.dumps(entry(number)).encode() for number in range(3)]
    (tmp_path / FILE).write_bytes(b"\n".join([lines[0], damage, *lines[1:]]) + b"\n")
    told: list[str] = []
    ledger = Ledger(tmp_path, told.append)
    assert [known["cell"] for known in ledger] == [entry(number)["cell"] for number in range(3)]
    assert told == [f"ledger: {tmp_path / FILE}: 1 unreadable line left out, kept in {BAD}; the other 3 cells are used"]
    assert not (tmp_path / BAD).exists(), "who only reads moves nothing: another may be writing"
    ledger.note(**entry(3))
    assert (tmp_path / BAD).read_bytes() == damage + b"\n"
    again: list[str] = []
    assert len(list(Ledger(tmp_path, again.append))) == 4
    assert again == []


def test_a_line_cut_short_by_a_kill_does_not_swallow_the_next(tmp_path):
    (tmp_path / FILE).write_bytes(json.dumps(entry(0)).encode() + b"\n" + json.dumps(entry(1)).encode()[:40])
    ledger = Ledger(tmp_path)
    ledger.note(**entry(2))
    assert [known["cell"] for known in Ledger(tmp_path)] == [entry(0)["cell"], entry(2)["cell"]]
    mended = (tmp_path / FILE).stat()
    ledger.note(**entry(3))
    after = (tmp_path / FILE).stat()
    assert after.st_ino == mended.st_ino, "it is mended once, and appended to from then on"
    assert after.st_size > mended.st_size


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / FILE).write_bytes(json.dumps(entry(0)).encode())
    ledger = Ledger(tmp_path)
    ledger.note(**entry(1))
    assert len(list(Ledger(tmp_path))) == 2


def test_kill_9_of_the_writer_loses_no_line_it_has_acknowledged(tmp_path):
    code = (
        "import sys; from pathlib import Path; from raypft.campaigns.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for number in range(10**9):\n"
        "    ledger.note(cell=str(number), status='finished')\n"
        "    print(number, flush=True)\n"
    )
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ
        ) as process:
            assert process.stdout is not None
            seen = [int(process.stdout.readline()) for _ in range(200)]
            process.send_signal(signal.SIGKILL)
        told: list[str] = []
        ledger = Ledger(tmp_path, told.append)
        assert {str(number) for number in seen} <= {known["cell"] for known in ledger}
        assert len(told) <= 1


def test_100_000_finished_cells_open_in_seconds(tmp_path):
    (tmp_path / FILE).write_text("".join(json.dumps(entry(number)) + "\n" for number in range(100_000)))
    began = time.process_time()
    ledger = Ledger(tmp_path)
    seconds = time.process_time() - began
    print(f"100,000 cells opened in {seconds:.2f} CPU-s")
    assert len(ledger.entries) == 100_000
    assert len(ledger.study("s")) == 20_000
    assert seconds < 5
