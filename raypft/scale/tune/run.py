"""Ray Tune around campaigns: one trial is one configuration, its seeds one after the other.

Tune sees the mean on dev over the seeds done, epochs go to the run store.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from ray import tune

from raypft.campaigns.campaign import Campaign
from raypft.campaigns.state import Book
from raypft.cluster.feasible import Bundle, Infeasible, Shape, at_a_time, impossible
from raypft.config.job import Job
from raypft.runs import run as runs
from raypft.runs.cell import Tell
from raypft.scale.data import ENCODER_CPUS
from raypft.scale.session import (
    READER_CPUS,
    capacity,
    check_label,
    check_storage,
    cpus_per_worker,
    logical_cpus,
    quiet_loggers,
    ray_session,
)
from raypft.scale.tune.searcher import CampaignSearcher, SeedScheduler
from raypft.scale.tune.table_cell_search import TableCellSearch
from raypft.scale.tune.trackers import tracker
from raypft.scale.tune.trial import Trial
from raypft.storage import absolute, locked, remove

TRIAL_CPUS = 0.1
"""What a trial reserves beside its worker group."""
FILES = ".tune"
NO_CHECKPOINTS = tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False)


def needs(job: Job, cpus: float) -> tuple[Job, list[Bundle]]:
    """The job with its CPUs settled, and all that its trial takes, what the trial's own process reserves first.

    Raises:
        UserError: it does not fit; Ray would wait for ever.
    """
    own = job.resources
    if not own.workers:
        return job, [{"CPU": own.cpus_per_worker or min(1.0, cpus), "GPU": own.gpus_per_worker}]
    each = cpus_per_worker(job, cpus - TRIAL_CPUS)
    settled = job.model_copy(update={"resources": own.model_copy(update={"cpus_per_worker": each})})
    workers = [{"CPU": each, "GPU": own.gpus_per_worker} for _ in range(own.workers)]
    return settled, [{"CPU": TRIAL_CPUS}, *workers, {"CPU": READER_CPUS}, {"CPU": ENCODER_CPUS}]


def at_once(jobs: Sequence[Job], shapes: Sequence[Shape]) -> int:
    """How many trials may run together such that none waits for what another holds.

    Raises:
        UserError: a trial asks for more than the cluster has, or can get.
    """
    found = []
    for job in jobs:
        _, bundles = needs(job, logical_cpus(shapes))
        line = impossible(bundles, shapes, "this cluster")
        if line:
            raise Infeasible(line)
        found.append(at_a_time(bundles, shapes))
    return min(found, default=1)


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
        searches = [TableCellSearch(place, book, busy) for place in campaign.places()]
        if any(search.left or search.untested for search in searches):
            _tune(campaign, book, searches, busy, tell, watch)
        return book.rows()


def _tune(
    campaign: Campaign, book: Book, searches: list[TableCellSearch], busy: set[str], tell: Tell, watch: list[Any]
) -> None:
    """One Tune experiment over all searches."""
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    files = campaign.folder / (campaign.tracker or FILES)
    with ray_session(), quiet_loggers(logging.CRITICAL):
        check_storage(str(campaign.folder.parent))
        shapes = capacity()
        cpus = logical_cpus(shapes)
        jobs = [search.place.job(search.example) for search in searches]
        for job in jobs:
            check_label(job)
        together = at_once(jobs, shapes)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(together)  # a cluster that grows is asked for all of them
        # an idle worker group could keep what another kind of trial waits for
        lanes = campaign.lanes and all(job.resources == jobs[0].resources for job in jobs)
        searcher = CampaignSearcher(book, searches, busy, together, lambda job: needs(job, cpus)[0], tell, lanes)
        trainable = tune.with_resources(
            Trial,
            lambda config: tune.PlacementGroupFactory([needs(Job(**json.loads(config["work"])["job"]), cpus)[1][0]]),
        )
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=SeedScheduler(searcher),
                num_samples=sum(search.budget + 1 for search in searches),
                reuse_actors=True,
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
