"""One cell of a campaign's table while it runs: which configuration is next, and which is chosen at the end."""

from __future__ import annotations

import random
import statistics
from collections import deque
from typing import TYPE_CHECKING, Any

from raypft.errors import UserError
from raypft.scale.tune.search import STOPPERS, Tpe

if TYPE_CHECKING:
    from raypft.campaigns.campaign import TableCell
    from raypft.campaigns.state import CampaignState, Configuration


class TableCellSearch:
    """A cell of the table under way: what is still to run there, and what of it is chosen and tested.

    `config` is the campaign's search where one fills it, else None: then its one configuration is run and tested.

    Args:
        busy: names of the configurations at work anywhere in the campaign.

    Raises:
        UserError: a configuration does not fit, checked before anything runs.
    """

    def __init__(self, table_cell: TableCell, state: CampaignState, busy: set[str]) -> None:
        self.table_cell, self.state, self.config, self.busy = table_cell, state, table_cell.search, busy
        self.live: dict[str, Configuration] = {}
        self.chosen: Configuration | None = None
        self.queue: deque[Configuration] = deque()
        self.held: tuple[str, Configuration] | None = None
        self.proposed: dict[str, str] = {}
        self.means: dict[str, tuple[str, float]] = {}
        self.waiting: dict[str, int] = {}
        tried = list(state.tried(table_cell))
        self.begun = len(tried)
        self.seeds = len(tried[0].keys) if tried else len(table_cell.resolved(self.example).job.seeds)
        adaptive = table_cell.listed() is None
        self.tpe = (
            Tpe(table_cell.search, int(table_cell.study[:7], 16) + len(tried))
            if adaptive and table_cell.search
            else None
        )
        stopper = STOPPERS[self.config.scheduler] if self.config else None
        self.stopper = stopper(self.seeds) if stopper else None
        for configuration in tried:
            if not self._settled(configuration):
                state.check(configuration)
                self.queue.append(configuration)

    @property
    def example(self) -> dict[str, Any] | None:
        """Values of the space, where any will do."""
        return self.config.drawn(random.Random(0)) if self.config else None

    @property
    def left(self) -> int:
        """Cells that wait to be run, the chosen one's tests not counted."""
        queued = sum(self.waiting[configuration.name] for configuration in self.queue)
        return queued + (self.budget - self.begun) * self.seeds

    @property
    def untested(self) -> bool:
        """Whether what dev prefers now still has to be tested."""
        best = self.best() if self.config else None
        return best is not None and not self._is_tested(best)

    @property
    def leader(self) -> tuple[str, float] | None:
        """The best mean on dev so far and what it was reached with."""
        return max(self.means.values(), key=lambda labelled: labelled[1], default=None)

    @property
    def budget(self) -> int:
        """Configurations in all."""
        if self.tpe is not None and self.config is not None:
            return max(self.config.trials or 0, self.begun)
        return self.begun

    @property
    def tests(self) -> int:
        """Cells that are tested once more than they are run: those of the configuration that a search chooses."""
        return self.seeds if self.config else 0

    def todo(self, configuration: Configuration) -> list[int]:
        """The seeds that have no result yet."""
        test = self.config is None
        return [seed for seed in configuration.keys if self.state.where(configuration, seed, test) is None]

    def _is_tested(self, configuration: Configuration) -> bool:
        return all(self.state.where(configuration, seed, test=True) for seed in configuration.keys)

    def _settled(self, configuration: Configuration) -> bool:
        """Whether a configuration is over, as the ledger and the run folders say; what they say is learned from."""
        todo = self.todo(configuration)
        self.waiting[configuration.name] = len(todo)
        devs = [self._dev(configuration, seed) for seed in configuration.keys if seed not in todo]
        states = {self.state.ledger.get(key).get("status") for key in configuration.keys.values()}
        over = "pruned" in states or len(devs) == self.seeds or (self.tpe is not None and "failed" in states)
        known = [dev for dev in devs if dev is not None]
        if self.stopper is not None:
            for count in range(1, len(known) + 1):
                self.stopper.stops(configuration.name, known[:count])
        if known and len(known) == self.seeds:
            self.means[configuration.name] = (configuration.label, statistics.fmean(known))
        if over and self.tpe is not None:
            mean = statistics.fmean(known) if known and "failed" not in states else None
            self.tpe.remember(configuration.values, mean)
        return over

    def _dev(self, configuration: Configuration, seed: int) -> float | None:
        """The dev score of a finished cell, which the ledger then knows."""
        entry = self.state.ledger.get(configuration.keys[seed])
        if entry.get("status") == "finished":
            return entry["dev"]
        result = self.state.result(configuration, seed) or {}
        folder = self.state.where(configuration, seed, test=False)
        self.state.note(configuration, seed, "finished", dev=result.get("dev"), folder=str(folder))
        return result.get("dev")

    def next(self, trial: str) -> tuple[Configuration, bool] | None:
        """What to run now, and whether it is tested; None where nothing is to run, or not yet."""
        for _ in range(len(self.queue)):
            configuration = self.queue.popleft()
            if configuration.name in self.busy:
                self.queue.append(configuration)
            elif not self._settled(configuration):  # a process that outlived its campaign may have finished it by now
                return self._begin(trial, configuration)
        proposal = self._propose(trial) if self.tpe is not None else None
        if proposal or self.queue or self.held or self.live or self.config is None or self.chosen is not None:
            return proposal
        self.chosen = self.best()
        if self.chosen is None or self._is_tested(self.chosen):
            return None
        return self._begin(trial, self.chosen)

    def _begin(self, trial: str, configuration: Configuration) -> tuple[Configuration, bool]:
        self.live[trial] = configuration
        return configuration, self.config is None or configuration is self.chosen

    def _propose(self, trial: str) -> tuple[Configuration, bool] | None:
        """The next suggestion with something to run; one whose twin is at work is held back until that is done."""
        assert self.tpe is not None
        while self.held or self.begun < self.budget:
            name, configuration = self.held or self._suggested(self.tpe)
            if configuration is None:
                continue
            self.held = (name, configuration) if configuration.name in self.busy else None
            if self.held:
                return None
            todo = self.todo(configuration)
            devs = [self._dev(configuration, seed) for seed in configuration.keys if seed not in todo]
            if todo:
                self.proposed[trial] = name
                return self._begin(trial, configuration)
            self.tpe.learn(name, statistics.fmean(dev for dev in devs if dev is not None))
        return None

    def _suggested(self, tpe: Tpe) -> tuple[str, Configuration | None]:
        """A new suggestion and its name for the sampler; without a configuration where it does not fit."""
        self.begun += 1
        name = f"{self.table_cell.study}-{self.begun}"
        values = tpe.suggest(name)
        try:
            configuration = self.state.configuration(self.table_cell, values)
            self.state.check(configuration)
        except UserError as error:
            tpe.learn(name, None)
            entry = {"status": "failed", "reason": str(error), "study": None, "config": "", "values": values}
            self.state.ledger.note(cell=f"unfit/{name}", **entry)
            return name, None
        return name, configuration

    def over(self, trial: str, dev: float | None, whole: bool) -> None:
        """A trial has ended, with its mean on dev or, having failed, without; `whole`: over all seeds."""
        configuration = self.live.pop(trial)
        if dev is not None and whole:
            self.means[configuration.name] = (configuration.label, dev)
        if self.tpe is None or configuration is self.chosen:
            return
        if trial in self.proposed:
            self.tpe.learn(self.proposed[trial], dev)
        else:
            self.tpe.remember(configuration.values, dev)

    def best(self) -> Configuration | None:
        """The configuration with the best mean on dev among those with all seeds; the first of equals as the file lists
        them."""
        config = self.config
        assert config is not None
        scored: list[tuple[float, Configuration]] = []
        for configuration in self.state.tried(self.table_cell):
            entries = [self.state.ledger.get(key) for key in configuration.keys.values()]
            if all(entry.get("status") == "finished" and entry.get("dev") is not None for entry in entries):
                scored.append((statistics.fmean(entry["dev"] for entry in entries), configuration))
        scored.sort(key=lambda score: config.order(score[1].values))
        return max(scored, key=lambda score: score[0])[1] if scored else None
