"""Ray Tune around campaigns: one trial is one configuration, its seeds one after the other; Tune sees the mean on dev over the
seeds done, epochs go to the run store. The ledger is written here, by the driver alone; results are in the run folders.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raypft.campaigns.campaign import Campaign
from raypft.campaigns.state import Book, Configuration
from raypft.config.job import Job
from raypft.runs import run as runs
from raypft.runs.results import Tell
from raypft.scale.resources import logical_cpus, settled, trial_bundles, trials_at_once
from raypft.scale.session import capacity, check_label, check_storage, quiet_loggers, ray_session
from raypft.scale.tune.study import Study
from raypft.scale.tune.trackers import tracker
from raypft.scale.tune.trial import Trial
from raypft.storage import absolute, locked, remove

FILES = ".tune"
NO_CHECKPOINTS = tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False)


@dataclass
class Running:
    """A trial at work: the seeds it still has to do, dev scores of those done, and whether it is tested."""

    study: Study
    configuration: Configuration
    test: bool
    todo: list[int]
    devs: list[float] = field(default_factory=list)
    failed: bool = False
    stopped: str = ""


class Director(Searcher):
    """Hands out trials and keeps the book: which configuration runs, which cells are finished, failed or pruned."""

    def __init__(
        self, book: Book, studies: list[Study], busy: set[str], limit: int, cpus: float, tell: Tell, lanes: bool
    ) -> None:
        super().__init__(metric="dev", mode="max")
        self.lanes = lanes
        self.book, self.studies, self.busy, self.limit, self.cpus, self.tell = book, studies, busy, limit, cpus, tell
        self.running: dict[str, Running] = {}
        self.began, self.run = time.monotonic(), 0

    def __deepcopy__(self, memo: Any) -> Director:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the ledger is the state."""

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, None for later, FINISHED when all is done."""
        for study in self.studies if len(self.running) < self.limit else ():
            found = study.next(trial_id)
            if found is not None:
                return self._start(trial_id, study, *found)
        return None if self.running else Searcher.FINISHED

    def _start(self, trial: str, study: Study, configuration: Configuration, test: bool) -> dict[str, Any]:
        """What the trial gets: readable keys for trackers, the rest as JSON."""
        chosen = configuration is study.chosen
        book, keys = self.book, configuration.keys
        todo = [seed for seed in keys if book.where(configuration, seed, test) is None]
        known = [book.ledger.get(keys[seed]).get("dev") for seed in keys if seed not in todo]
        devs = [] if chosen else [dev for dev in known if dev is not None]
        fresh = book.fresh and not any(book.ledger.get(key) for key in keys.values())
        self.busy.add(configuration.name)
        self.running[trial] = Running(study, configuration, test, todo, devs)
        if not chosen:
            book.note(configuration, todo[0], "running", dev=None)
        self._say({"event": "trial", "label": configuration.label, "chosen": chosen})
        job = configuration.job
        job = job.model_copy(update={"resources": settled(job.resources, self.cpus)})
        work = {
            "job": job.model_dump() | {"storage": absolute(job.storage)},
            "keys": {str(seed): keys[seed] for seed in todo},
            "devs": devs,
            "test": test,
            "fresh": fresh,
            "ends_on_failure": study.search is not None,
            "lanes": self.lanes,
        }
        place = configuration.place
        return {"row": place.row, "task": place.task, **place.axes, **configuration.values, "work": json.dumps(work)}

    def stops(self, trial: str, result: dict[str, Any]) -> bool:
        """Whether the study's scheduler ends the trial after this seed."""
        running = self.running[trial]
        if (
            result["seed"] not in running.todo
        ):  # a trial that was begun again tells what it had told before its process died
            return False
        if running.study.stopper is None or running.test or result["reason"] or math.isnan(result["dev_of_seed"]):
            return False
        running.stopped = (
            running.study.stopper.stops(running.configuration.name, [*running.devs, result["dev_of_seed"]]) or ""
        )
        return bool(running.stopped)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A seed is done, others follow."""
        running = self.running[trial_id]
        self._cell(running, result)
        if running.todo and running.configuration is not running.study.chosen:
            self.book.note(running.configuration, running.todo[0], "running", dev=None)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial has ended: with its last seed, stopped, failed, or with its process."""
        if trial_id not in self.running:
            return
        running = self.running[trial_id]
        if result is None or error:
            result = {"seed": None, "reason": "the trial's process ended unexpectedly; out of memory?", "last": True}
        elif result["last"]:
            self.stops(trial_id, result)  # the others are measured against it
        self._cell(running, result)
        for seed in running.todo:
            self._lost(
                running,
                seed,
                "pruned" if running.stopped and not result["last"] else "failed",
                running.stopped or result["reason"],
            )
        del self.running[trial_id]
        self.busy.discard(running.configuration.name)
        failed = running.failed or not running.devs
        running.study.over(trial_id, None if failed else statistics.fmean(running.devs), whole=not running.stopped)

    def _cell(self, running: Running, result: dict[str, Any]) -> None:
        if result["seed"] not in running.todo:  # as above; or the trial failed before its first
            return
        self.run += 1
        running.todo.remove(result["seed"])
        if result["reason"]:
            self._lost(running, result["seed"], "failed", result["reason"])
            return
        dev = None if math.isnan(result["dev_of_seed"]) else result["dev_of_seed"]
        if dev is not None:
            running.devs.append(dev)
        self.book.note(
            running.configuration, result["seed"], "finished", dev=dev, tested=running.test, folder=result["folder"]
        )
        test = None if math.isnan(result["test"]) else result["test"]
        self._say(
            {
                "event": "cell",
                "label": running.configuration.label,
                "seed": result["seed"],
                "status": "finished",
                "dev": dev,
                "test": test,
            }
        )

    def _lost(self, running: Running, seed: int, status: str, reason: str) -> None:
        running.failed |= status == "failed"
        self.book.note(running.configuration, seed, status, dev=None, reason=reason)
        self._say(
            {"event": "cell", "label": running.configuration.label, "seed": seed, "status": status, "reason": reason}
        )

    def _say(self, event: dict[str, Any]) -> None:
        """Tell an event, with how far the campaign is."""
        total = sum(study.budget * study.seeds for study in self.studies)
        left = sum(study.left for study in self.studies) + sum(
            len(r.todo) for r in self.running.values() if r.configuration is not r.study.chosen
        )
        each = (time.monotonic() - self.began) / self.run if self.run else None
        best = {study.place.label: study.leader for study in self.studies if study.search and study.leader}
        running = {
            running.configuration.label: f"{running.study.seeds - len(running.todo)}/{running.study.seeds}"
            for running in self.running.values()
        }
        self.tell(
            {
                **event,
                "done": total - left,
                "total": total,
                "left": None if each is None else round(each * left),
                "running": running,
                "best": best,
            }
        )


class Stops(FIFOScheduler):
    """Passes every study's own rule on to Tune."""

    def __init__(self, director: Director) -> None:
        super().__init__()
        self.director = director

    def __deepcopy__(self, memo: Any) -> Stops:
        return self

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or go on."""
        return TrialScheduler.STOP if self.director.stops(trial.trial_id, result) else TrialScheduler.CONTINUE


def run_campaign(campaign: Campaign, tell: Tell, fresh: bool = False) -> list[dict[str, Any]]:
    """Run what is not finished; the cells of the table, as `report.campaign` reads them.

    Raises:
        UserError: anything that can be known before compute is spent; or another process works on the campaign.
    """
    watch = tracker(campaign.tracker)
    with locked(campaign.folder):
        for job in campaign.prerequisites():
            runs.run([runs.prepare(job)], tell, fresh)
        book = Book(campaign, lambda text: tell({"event": "note", "text": text}), fresh)
        book.write_campaign()
        busy: set[str] = set()
        studies = [Study(place, book, busy) for place in campaign.places()]
        if any(study.left or study.untested for study in studies):
            _tune(campaign, book, studies, busy, tell, watch)
        return book.rows()


def _tune(campaign: Campaign, book: Book, studies: list[Study], busy: set[str], tell: Tell, watch: list[Any]) -> None:
    """One Tune experiment over all studies."""
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    files = campaign.folder / (campaign.tracker or FILES)
    with ray_session(), quiet_loggers(logging.CRITICAL):
        check_storage(str(campaign.folder.parent))
        shapes = capacity()
        cpus = logical_cpus(shapes)
        jobs = [study.place.job(study.example) for study in studies]
        for job in jobs:
            check_label(job)
        together = trials_at_once([job.resources for job in jobs], shapes)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(
            together
        )  # so that a cluster that grows is asked for all of them
        alike = all(
            job.resources == jobs[0].resources for job in jobs
        )  # an idle lane could keep what another kind of trial waits for
        director = Director(book, studies, busy, together, cpus, tell, campaign.lanes and alike)
        trainable = tune.with_resources(
            Trial,
            lambda config: tune.PlacementGroupFactory(
                [trial_bundles(Job(**json.loads(config["work"])["job"]).resources, cpus)[0]]
            ),
        )
        most = sum(study.budget + 1 for study in studies)
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=director, scheduler=Stops(director), num_samples=most, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=absolute(files),
                verbose=0,
                callbacks=watch,
                checkpoint_config=NO_CHECKPOINTS,
                failure_config=tune.FailureConfig(max_failures=max(job.resources.max_failures for job in jobs)),
            ),
        ).fit()
    if campaign.tracker is None:
        remove(files)
