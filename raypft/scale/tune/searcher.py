"""What Ray Tune asks in a campaign: which configuration is tried next, and whether a trial goes on after a seed.

The ledger is written here, by the driver alone; results are in the run folders.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from raypft import hub
from raypft.config.job import Job
from raypft.scale.tune.work import Work
from raypft.storage import absolute

if TYPE_CHECKING:
    from raypft.campaigns.state import CampaignState, Configuration
    from raypft.runs.results import Tell
    from raypft.scale.tune.table_cell_search import TableCellSearch


def _ending_all(hook: Callable[..., Any]) -> Callable[..., Any]:
    """What Tune calls: an error in it is kept, and nothing is done any more. Tune would take it for the trial's own and
    go on with a ledger that lacks it."""

    @functools.wraps(hook)
    def kept(self: CampaignSearcher, *told: Any, **more: Any) -> Any:
        if self.error is None:
            try:
                return hook(self, *told, **more)
            except Exception as error:
                self.error = error
        return None

    return kept


@dataclass
class RunningTrial:
    """A trial at work: the seeds it still has to do, dev scores of those done, and whether it is tested."""

    search: TableCellSearch
    configuration: Configuration
    test: bool
    todo: list[int]
    devs: list[float] = field(default_factory=list)
    failed: bool = False
    stopped: str = ""

    @property
    def chosen(self) -> bool:
        """Whether it tests what its search has chosen."""
        return self.configuration is self.search.chosen


class CampaignSearcher(Searcher):
    """Hands out trials and keeps the ledger: which configuration runs, which cells are finished, failed or pruned.

    Args:
        busy: names of the configurations at work, shared with the searches.
        limit: trials at once.
        settled: a job with its CPUs settled.
        lanes: whether worker groups outlive trials.

    error: what ends the campaign, see `EndsAll`.
    """

    def __init__(
        self,
        state: CampaignState,
        searches: list[TableCellSearch],
        busy: set[str],
        limit: int,
        settled: Callable[[Job], Job],
        tell: Tell,
        lanes: bool,
    ) -> None:
        super().__init__(metric="dev", mode="max")
        self.state, self.searches, self.busy, self.limit = state, searches, busy, limit
        self.settled, self.tell, self.lanes = settled, tell, lanes
        self.running: dict[str, RunningTrial] = {}
        self.began, self.num_run = time.monotonic(), 0
        self.error: Exception | None = None

    def __deepcopy__(self, memo: Any) -> CampaignSearcher:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the ledger is the state."""

    @_ending_all
    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, None for later, FINISHED when all is done."""
        for search in self.searches if len(self.running) < self.limit else ():
            suggestion = search.next(trial_id)
            if suggestion is not None:
                return self._start(trial_id, search, *suggestion)
        return None if self.running else Searcher.FINISHED

    def _start(
        self, trial_id: str, search: TableCellSearch, configuration: Configuration, test: bool
    ) -> dict[str, Any]:
        """What the trial gets: readable keys for trackers, the rest as `Work`."""
        chosen = configuration is search.chosen
        state, keys = self.state, configuration.keys
        todo = [seed for seed in keys if state.where(configuration, seed, test) is None]
        known = [state.ledger.get(keys[seed]).get("dev") for seed in keys if seed not in todo]
        devs = [] if chosen else [dev for dev in known if dev is not None]
        fresh = state.fresh and not any(state.ledger.get(key) for key in keys.values())
        self.busy.add(configuration.name)
        self.running[trial_id] = RunningTrial(search, configuration, test, todo, devs)
        if not chosen:
            state.note(configuration, todo[0], "running", dev=None)
        self._say({"event": "trial", "label": configuration.label, "chosen": chosen})
        job = self.settled(configuration.job)
        work = Work(
            job=job.model_dump() | {"storage": absolute(job.storage)},
            keys={str(seed): keys[seed] for seed in todo},
            devs=devs,
            test=test,
            fresh=fresh,
            ends_on_failure=search.config is not None,
            lanes=self.lanes,
            commits=hub.commits(),
        )
        table_cell = configuration.table_cell
        return {
            "row": table_cell.row,
            "task": table_cell.task,
            **table_cell.axes,
            **configuration.values,
            "work": work,
        }

    @_ending_all
    def stops(self, trial_id: str, result: dict[str, Any]) -> bool | None:
        """Whether the search's stopper ends the trial after this seed."""
        trial = self.running[trial_id]
        if result["seed"] not in trial.todo:  # a trial begun again tells what it had told before its process died
            return False
        if trial.search.stopper is None or trial.test or result["reason"] or math.isnan(result["dev_of_seed"]):
            return False
        devs = [*trial.devs, result["dev_of_seed"]]
        trial.stopped = trial.search.stopper.stops(trial.configuration.name, devs) or ""
        return bool(trial.stopped)

    @_ending_all
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A seed is done, others follow."""
        trial = self.running[trial_id]
        self._note_cell(trial, result)
        if trial.todo and not trial.chosen:
            self.state.note(trial.configuration, trial.todo[0], "running", dev=None)

    @_ending_all
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial has ended: with its last seed, stopped, failed, or with its process."""
        if trial_id not in self.running:
            return
        trial = self.running[trial_id]
        if result is None or error:
            result = {"seed": None, "reason": "the trial's process ended unexpectedly; out of memory?", "last": True}
        elif result["last"]:
            self.stops(trial_id, result)  # the others are measured against it
        self._note_cell(trial, result)
        status = "pruned" if trial.stopped and not result["last"] else "failed"
        for seed in trial.todo:
            self._note_lost(trial, seed, status, trial.stopped or result["reason"])
        del self.running[trial_id]
        self.busy.discard(trial.configuration.name)
        dev = None if trial.failed or not trial.devs else statistics.fmean(trial.devs)
        trial.search.over(trial_id, dev, whole=not trial.stopped)

    def _note_cell(self, trial: RunningTrial, result: dict[str, Any]) -> None:
        seed = result["seed"]
        if seed not in trial.todo:  # as in `stops`; or the trial failed before its first
            return
        self.num_run += 1
        trial.todo.remove(seed)
        if result["reason"]:
            self._note_lost(trial, seed, "failed", result["reason"])
            return
        dev = None if math.isnan(result["dev_of_seed"]) else result["dev_of_seed"]
        if dev is not None:
            trial.devs.append(dev)
        folder = absolute(trial.configuration.folder(seed))
        self.state.note(trial.configuration, seed, "finished", dev=dev, tested=trial.test, folder=folder)
        test = None if math.isnan(result["test"]) else result["test"]
        self._say_cell(trial, seed, status="finished", dev=dev, test=test)

    def _note_lost(self, trial: RunningTrial, seed: int, status: str, reason: str) -> None:
        trial.failed |= status == "failed"
        self.state.note(trial.configuration, seed, status, dev=None, reason=reason)
        self._say_cell(trial, seed, status=status, reason=reason)

    def _say_cell(self, trial: RunningTrial, seed: int, **more: Any) -> None:
        self._say({"event": "cell", "label": trial.configuration.label, "seed": seed, **more})

    def _say(self, event: dict[str, Any]) -> None:
        """Tell an event, with how far the campaign is."""
        trials, searches = self.running.values(), self.searches
        total = sum(search.budget * search.seeds + search.tests for search in searches)
        left = sum(search.left for search in searches) + sum(len(trial.todo) for trial in trials)
        left += sum(search.tests for search in searches if search.chosen is None)
        seconds_a_cell = (time.monotonic() - self.began) / self.num_run if self.num_run else None
        leaders = {search.table_cell.label: search.leader for search in searches if search.config}
        running: dict[str, str] = {}
        for trial in trials:
            running[trial.configuration.label] = f"{trial.search.seeds - len(trial.todo)}/{trial.search.seeds}"
        progress = {
            "done": total - left,
            "total": total,
            "left": None if seconds_a_cell is None else round(seconds_a_cell * left),
            "running": running,
            "best": {label: leader for label, leader in leaders.items() if leader},
        }
        self.tell({**event, **progress})


class EndsAll(Stopper):
    """Ends all trials where the searcher has met an error; Tune gives back what they hold."""

    def __init__(self, searcher: CampaignSearcher) -> None:
        self.searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether it has."""
        return self.searcher.error is not None


class SeedScheduler(FIFOScheduler):
    """Passes the stopping rule of every search on to Tune, seed by seed."""

    def __init__(self, searcher: CampaignSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def __deepcopy__(self, memo: Any) -> SeedScheduler:
        return self

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or go on."""
        return TrialScheduler.STOP if self.searcher.stops(trial.trial_id, result) else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget a trial's numbers, of which Tune keeps the last ones, the best and means: nobody asks it for them, and
        a campaign has many trials."""
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
