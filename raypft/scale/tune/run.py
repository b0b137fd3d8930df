"""Ray Tune around campaigns: one trial is one configuration, its seeds one after the other.

Tune sees the mean on dev over the seeds done, epochs go to the run store.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError

from raypft.campaigns.campaign import Campaign
from raypft.campaigns.state import CampaignState
from raypft.config.job import Job, Resources
from raypft.errors import UserError, first_line
from raypft.runs.prepare import prepare
from raypft.runs.results import Tell
from raypft.scale.data import remove_left_in
from raypft.scale.resources import logical_cpus, settled, trial_bundles, trials_at_once
from raypft.scale.run import run_jobs
from raypft.scale.session import capacity, check_label, check_storage, quiet_loggers, ray_session
from raypft.scale.tune.check import left_as_it_was, refusals, refuse
from raypft.scale.tune.searcher import CampaignSearcher, EndsAll, SeedScheduler
from raypft.scale.tune.table_cell_search import TableCellSearch
from raypft.scale.tune.trackers import Spared, tracker
from raypft.scale.tune.trial import Trial
from raypft.storage import absolute, check_writable, locked, one_line_of_disk, remove

FILES = ".tune"
NO_CHECKPOINTS = tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False)


def run_campaign(campaign: Campaign, tell: Tell, fresh: bool = False) -> list[dict[str, Any]]:
    """Run what is not finished; the cells of the table, as `report.campaign` reads them.

    Raises:
        UserError: anything that can be known before compute is spent; or another process works on the campaign.
    """

    @functools.cache  # the ledger is read to check, and again under the lock
    def note(text: str) -> None:
        tell({"event": "note", "text": text})

    check_writable(campaign.folder)
    with left_as_it_was(campaign.folder) as refused:
        checks = CampaignState(campaign, note)
        refused += refusals(campaign, checks, fresh)
    refuse(refused)
    watch = tracker(campaign.tracker)
    with one_line_of_disk(), locked(campaign.folder):
        checks.write_campaign()  # before anything runs: `raypft watch` opens it
        for prerequisite in campaign.prerequisites():
            run_jobs([prepare(prerequisite)], tell, fresh)
        state = CampaignState(campaign, note, fresh)
        state.memo, state.fit = checks.memo, checks.fit
        busy: set[str] = set()
        searches = [TableCellSearch(table_cell, state, busy) for table_cell in campaign.table_cells()]
        if any(search.left or search.untested for search in searches):
            _tune(campaign, state, searches, busy, tell, watch)
        return state.rows()


@contextmanager
def one_line_of_memory() -> Iterator[None]:
    """Around Tune: that Ray ended a trial since the memory of its node was full, at which Tune gives up, is one line.

    Raises:
        UserError: that line.
    """
    try:
        yield
    except RuntimeError as error:
        full = error.__cause__
        if not isinstance(full, OutOfMemoryError):
            raise
        raise UserError(
            f"tune: out of memory: {first_line(full)}; what is finished is kept and the same command "
            "(without --fresh) goes on, when other work has ended or with fewer trials at once "
            "(more resources.cpus_per_worker)"
        ) from None


def _tune(
    campaign: Campaign,
    state: CampaignState,
    searches: list[TableCellSearch],
    busy: set[str],
    tell: Tell,
    watch: list[Any],
) -> None:
    """One Tune experiment over all searches."""
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would end as if all were done
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(10**9)  # its own record of all trials: the ledger is what is read
    files = campaign.folder / (campaign.tracker or FILES)
    with ray_session(), quiet_loggers(logging.CRITICAL):
        check_storage(str(campaign.folder.parent))
        remove_left_in(str(campaign.folder.parent))
        shapes = capacity()
        cpus = logical_cpus(shapes)
        jobs = [search.table_cell.resolved(search.example).job for search in searches]
        for job in jobs:
            check_label(job.resources)
        together = trials_at_once([job.resources for job in jobs], shapes)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(together)  # a cluster that grows is asked for all of them
        # an idle worker group could keep what another kind of trial waits for
        lanes = campaign.lanes and all(job.resources == jobs[0].resources for job in jobs)

        def settle(job: Job) -> Job:
            return job.model_copy(update={"resources": settled(job.resources, cpus)})

        searcher = CampaignSearcher(state, searches, busy, together, settle, tell, lanes)

        asked_for = dict[str, tune.PlacementGroupFactory]()  # one for all trials alike: Tune keeps that of each

        def trial_itself(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            resources = config["work"].read()["job"]["resources"]
            own = tune.PlacementGroupFactory([trial_bundles(Resources(**resources), cpus)[0]])
            return asked_for.setdefault(json.dumps(resources), own)

        tuner = tune.Tuner(
            tune.with_resources(Trial, trial_itself),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=SeedScheduler(searcher),
                num_samples=sum(search.budget + 1 for search in searches),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=absolute(files),
                stop=EndsAll(searcher),
                verbose=0,
                callbacks=[Spared(one, tell) for one in watch],
                checkpoint_config=NO_CHECKPOINTS,
                failure_config=tune.FailureConfig(max_failures=max(job.resources.max_failures for job in jobs)),
            ),
        )
        with one_line_of_memory():
            tuner.fit()
        if searcher.error is not None:
            raise searcher.error
    if campaign.tracker is None:
        remove(files)
