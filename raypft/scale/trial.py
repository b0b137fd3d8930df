"""A Ray Tune trial: one configuration, a step for each of its seeds. Without workers its cells run in the trial's own process,
which goes on to the next trial with the backbone loaded; with workers one Ray Train group takes them one after the other.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ray import tune

from raypft import runs
from raypft.cells import TESTED, UNTESTED, Cell, is_finished
from raypft.errors import UserError
from raypft.job import Job

LOCK_SECONDS = 300
"""How long a trial waits for a run folder: the process of a killed campaign may need a moment to end."""


class Trial(tune.Trainable):
    """Runs what `tune.Director` packed: the job, the keys of the cells to run by seed, the dev scores of those done before."""

    def setup(self, config: dict[str, Any]) -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)
        self.work = json.loads(config["work"])
        self.devs: list[float] = list(self.work["devs"])
        self.stack, self.group, self.cells, self.fault = ExitStack(), None, list[Cell](), ""
        self.here = getattr(self, "here", None) or runs.Here()
        try:
            self._prepare()
        except Exception as error:  # whatever it is, the other trials go on
            self.fault = line(error)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        if self.group is not None:
            self.group.end()
        self.stack.close()

    def _prepare(self) -> None:
        self.prepared = runs.prepare(Job(**self.work["job"]))
        for seed, key in self.work["keys"].items():
            if self.prepared.keys[int(seed)] != key:
                raise UserError(f"data: rows, model or method changed since the campaign was planned (seed {seed}); start it again")
        self.stack.enter_context(runs.begun(self.prepared, self.work["fresh"], LOCK_SECONDS))
        self.cells = [cell for cell in self.prepared.cells(self.work["test"]) if str(cell.seed) in self.work["keys"]]

    def step(self) -> dict[str, Any]:
        """Run the next seed; what Tune and the director learn of it."""
        if self.fault:
            return self._told(None, math.nan, {}, self.fault, last=True)
        cell = self.cells.pop(0)
        try:
            result, reason = self._run(cell), ""
            if result.get("dev") is not None:
                self.devs.append(result["dev"])
        except Exception as error:  # as above
            result, reason = {}, line(error)
            cell.folder.mkdir(parents=True, exist_ok=True)
            (cell.folder / "failure.log").write_text(traceback.format_exc())
            self.here, self.group = runs.Here(), None
        last = not self.cells or bool(reason and self.work["ends_on_failure"])
        if last:
            runs.conclude(self.prepared)
        dev = result.get("dev")
        return self._told(cell, math.nan if dev is None else dev, result, reason, last)

    def _told(self, cell: Cell | None, dev: float, result: dict[str, Any], reason: str, last: bool) -> dict[str, Any]:
        return {
            "seed": None if cell is None else cell.seed, "folder": None if cell is None else str(cell.folder), "dev_of_seed": dev,
            "dev": statistics.fmean(self.devs) if self.devs else math.nan, "seeds_done": len(self.devs),
            "test": result.get("mean", math.nan), "reason": reason, "last": last, "done": last,
        }  # fmt: skip

    def _run(self, cell: Cell) -> dict[str, Any]:
        if not cell.finished and not cell.job.resources.workers:
            return self.here.run(cell, lambda event: None)
        if not cell.finished:
            self.group = self.group or Group([cell, *self.cells])
            self.group.wait(cell)
        return json.loads((cell.folder / (TESTED if is_finished(cell.folder) else UNTESTED)).read_text())


class Group:
    """A Ray Train worker group at work on cells, in a thread of the trial."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells, self.error = cells, None
        self.stop = Path(cells[0].job.storage).resolve() / ".ray" / f"stop-{cells[0].facts['cell']}"
        self.stop.unlink(missing_ok=True)
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        from raypft.scale.launch import run_on_ray  # noqa: PLC0415  (the trial without workers needs none of it)

        try:
            run_on_ray(self.cells, lambda event: None, self.stop)
        except Exception as error:  # raised again where the cell is waited for
            self.error = error

    def wait(self, cell: Cell) -> None:
        """Until the cell is finished.

        Raises:
            Exception: what ended the group before.
        """
        while not cell.finished:
            self.thread.join(0.2)
            if not self.thread.is_alive() and not cell.finished:
                raise self.error or UserError("run: the workers ended without a result")

    def end(self) -> None:
        """End the workers after their epoch, and wait for that."""
        self.stop.parent.mkdir(parents=True, exist_ok=True)
        self.stop.touch()
        self.thread.join()
        self.stop.unlink(missing_ok=True)


def line(error: Exception) -> str:
    """A failure as one line."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"
