"""A Ray Tune trial: one configuration, a step for each of its seeds.

Without workers its cells run in the trial's own process, with workers in a worker group. Its executor goes on to the
next trial with the backbone loaded.
"""

from __future__ import annotations

import gc
import logging
import math
import statistics
import traceback
from contextlib import ExitStack
from typing import Any

from ray import tune

from raypft import hub
from raypft.config.job import Job
from raypft.config.load import resolve
from raypft.errors import UserError
from raypft.runs.cell import Cell
from raypft.runs.executor import Executor, LocalExecutor
from raypft.runs.prepare import prepare
from raypft.runs.results import LOG, read_result
from raypft.runs.run import begun, conclude

LOCK_SECONDS = 300
"""How long a trial waits for a run folder: the process of a killed campaign may need a moment to end."""


class Trial(tune.Trainable):
    """Runs what `CampaignSearcher` packed: the job, the keys of its cells to run by seed, dev scores of the others."""

    def setup(self, config: dict[str, Any]) -> None:
        if not hasattr(self, "executor"):
            gc.freeze()  # modules: what trials leave behind is found without looking through them
        logging.getLogger("ray").setLevel(logging.ERROR)
        self.work = config["work"].read()
        self.devs: list[float] = list(self.work["devs"])
        self.stack, self.cells, self.fault = ExitStack(), list[Cell](), ""
        self.executor: Executor | None = getattr(self, "executor", None)
        try:
            self._prepare()
        except Exception as error:  # whatever it is, the other trials go on
            self.fault = line(error)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process."""
        self.stack.close()
        self.cells.clear()
        vars(self).pop("prepared", None)
        gc.collect()  # a model's skeleton and its tokenizer hold themselves in circles, which else pile up for long
        if not self.work["lanes"] and not isinstance(self.executor, LocalExecutor):
            self._close_executor()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self.stack.close()
        self._close_executor()

    def _close_executor(self) -> None:
        executor, self.executor = self.executor, None
        if executor is not None:
            executor.close()

    def _prepare(self) -> None:
        hub.adopt(self.work["commits"])
        self.prepared = prepare(resolve(Job(**self.work["job"])))
        for seed, key in self.work["keys"].items():
            if self.prepared.keys[int(seed)] != key:
                raise UserError(
                    f"data: rows, model or method changed since the campaign was planned (seed {seed}); start it again"
                )
        self.stack.enter_context(begun(self.prepared, self.work["fresh"], LOCK_SECONDS))
        self.cells = [cell for cell in self.prepared.cells(self.work["test"]) if str(cell.seed) in self.work["keys"]]

    def step(self) -> dict[str, Any]:
        """Run the next seed; what Tune and the searcher learn of it."""
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
            (cell.folder / LOG).write_text(traceback.format_exc())
            if isinstance(self.executor, LocalExecutor):
                self._close_executor()
        last = not self.cells or bool(reason and self.work["ends_on_failure"])
        if last:
            conclude(self.prepared)
        dev = result.get("dev")
        return self._told(cell, math.nan if dev is None else dev, result, reason, last)

    def _told(self, cell: Cell | None, dev: float, result: dict[str, Any], reason: str, last: bool) -> dict[str, Any]:
        return {
            "seed": None if cell is None else cell.seed,
            "dev_of_seed": dev,
            "dev": statistics.fmean(self.devs) if self.devs else math.nan,
            "seeds_done": len(self.devs),
            "test": result.get("mean", math.nan),
            "reason": reason,
            "last": last,
            "done": last,
        }

    def _run(self, cell: Cell) -> dict[str, Any]:
        if cell.finished:
            return read_result(cell.folder)
        executor = self._executor_for(cell.job)
        executor.prepare([cell, *self.cells])
        return executor.run(cell, lambda event: None)

    def _executor_for(self, job: Job) -> Executor:
        """The one that is there, unless the last trial's ran elsewhere."""
        local = job.resources.workers == 0
        if self.executor is None or isinstance(self.executor, LocalExecutor) != local:
            self._close_executor()
            self.executor = LocalExecutor() if local else _ray_executor()
        return self.executor


def _ray_executor() -> Executor:
    from raypft.scale.executor import RayExecutor  # noqa: PLC0415  (a trial without workers needs none of it)

    return RayExecutor()


def line(error: Exception) -> str:
    """A failure as one line."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"
