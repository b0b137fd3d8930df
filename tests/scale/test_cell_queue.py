"""What the queue of a worker group counts as a failure of the cell that is to run; no Ray."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raypft.scale import cell_queue
from raypft.scale.cell_queue import CellQueue


def cell(folder: Path, max_failures: int = 1) -> dict[str, Any]:
    return {"folder": str(folder / "seed-0"), "seed": 0, "job": {"resources": {"max_failures": max_failures}}}


def test_workers_that_die_before_they_ask_for_a_cell_are_not_started_for_ever(tmp_path):
    async def starts() -> int:
        queue = CellQueue()
        number = await queue.put(cell(tmp_path))
        for count in range(1, 20):
            await queue.start()
            if number in queue.errors:
                return count - 1
        return 20

    assert asyncio.run(starts()) == 2, "the first, and as many again as max_failures says"


def test_workers_that_die_while_they_wait_cost_the_next_cell_nothing(tmp_path):
    async def failures() -> int:
        queue = CellQueue()
        await queue.start()
        waiting = asyncio.ensure_future(queue.take(0))
        await asyncio.sleep(0)
        waiting.cancel()
        await queue.put(cell(tmp_path, max_failures=0))
        await queue.start()
        assert queue.errors == {}
        return queue.failures

    assert asyncio.run(failures()) == 0


def test_that_workers_start_again_is_one_line(tmp_path):
    async def told() -> list[dict[str, Any]]:
        queue = CellQueue()
        await queue.put(cell(tmp_path, max_failures=2))
        await queue.start()
        for error in (None, "run: training failed: no luck"):
            await queue.take(0)
            if error:
                await queue.note_error(error)
            await queue.start()
        return await queue.take_events()

    notes = asyncio.run(told())
    assert [{**note, "text": ""} for note in notes] == [
        {"event": "note", "run": tmp_path.name, "seed": 0, "text": ""}
    ] * 2
    assert [note["text"] for note in notes] == [
        "seed 0: its workers ended early; they start again, time 1 of at most 2 without a new state",
        "seed 0: run: training failed: no luck; they start again, time 2 of at most 2 without a new state",
    ]


def test_a_new_state_counts_though_the_clock_was_set_back(tmp_path):
    async def failures() -> list[int]:
        queue, found = CellQueue(), list[int]()
        await queue.put(cell(tmp_path, max_failures=2))
        (tmp_path / "seed-0").mkdir()
        state, before = tmp_path / "seed-0" / "state.pt", tmp_path / "seed-0" / "state.previous.pt"
        for hour in (5, 4, 3):
            await queue.start()
            await queue.take(0)
            if state.exists():
                state.rename(before)
            state.touch()
            os.utime(state, (0, 3600.0 * hour))
            await queue.start()
            found.append(queue.failures)
        return found

    assert asyncio.run(failures()) == [1, 1, 1]


def test_what_is_done_is_not_kept(tmp_path):
    async def kept() -> list[dict[str, Any] | None]:
        queue = CellQueue()
        for number in range(4):
            await queue.put(cell(tmp_path))
            await queue.take(number)
            await queue.finish(number)
        assert await queue.take(3) is not None, "another worker may still ask for the last"
        await queue.put(None)
        assert await queue.take(4) is None
        return queue.cells

    assert asyncio.run(kept()) == [{}, {}, {}, cell(tmp_path), None]


def test_out_of_memory_halves_what_runs_at_once_and_is_no_failure_while_it_may_help(tmp_path):
    async def told() -> tuple[list[int], dict[int, str]]:
        queue, halvings = CellQueue(), list[int]()
        number = await queue.put(cell(tmp_path, max_failures=0))
        while number not in queue.errors:
            await queue.start()
            if number in queue.errors:
                break
            taken = await queue.take(number)
            assert taken is not None
            halvings.append(taken["halvings"])
            for _ in range(2):  # two workers of the group say so
                await queue.note_out_of_memory(number)
            await queue.note_error("run: out of memory")
        await queue.put(cell(tmp_path))
        assert (await queue.take(number + 1) or {})["halvings"] == 0, "another cell begins with all"
        return halvings, queue.errors

    halvings, errors = asyncio.run(told())
    assert halvings == list(range(11))
    assert errors == {0: "run: out of memory"}


def test_the_worker_that_is_silent_longest_is_named_first(monkeypatch):
    async def told() -> list[str]:
        queue, clock = CellQueue(), iter([100.0, 130.0, 131.0, 240.0])
        monkeypatch.setattr(cell_queue, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        await queue.beat("rank 0 (process 7 on a)", "loop.py:1 fit (all_reduce)")
        await queue.beat("rank 1 (process 8 on b)", "loop.py:2 evaluate (forward)")
        await queue.beat("rank 0 (process 7 on a)", "loop.py:1 fit (all_reduce)")
        return await queue.last_heard()

    assert asyncio.run(told()) == [
        "rank 1 (process 8 on b) was heard 110 s ago in loop.py:2 evaluate (forward)",
        "rank 0 (process 7 on a) was heard 109 s ago in loop.py:1 fit (all_reduce)",
    ]
