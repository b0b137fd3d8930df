"""Searches under Ray Tune: what is tried next (lists, Optuna's TPE) and which configuration is stopped between its seeds.

Both are fed from the ledger, in the order configurations began; there is no other state to restore.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from raypft.book import Book, Configuration
from raypft.campaign import Place
from raypft.errors import UserError
from raypft.space import Dimension, Search

T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Two-sided 95 % quantiles of Student's t, 1 to 10 degrees of freedom; above, the last, which is wider than theirs."""


class Asha:
    """Ray's ASHA over seeds: after 1, 2, 4, ... seeds the better half goes on."""

    def __init__(self, num_seeds: int) -> None:
        self.own = AsyncHyperBandScheduler(
            time_attr="seeds_done", metric="dev", mode="max", max_t=max(num_seeds, 2), grace_period=1, reduction_factor=2, stop_last_trials=False
        )

    def stops(self, name: str, devs: Sequence[float]) -> str | None:
        """The reason to stop a configuration after a seed, None to go on.

        Args:
            name: of the configuration; devs: dev score of each seed done, in order.
        """
        trial: Any = SimpleNamespace(trial_id=name)
        if name not in self.own._trial_info:
            self.own.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
        result = {"seeds_done": len(devs), "dev": statistics.fmean(devs)}
        stopped = self.own.on_trial_result(None, trial, result) == TrialScheduler.STOP  # pyright: ignore[reportArgumentType]
        return f"asha: in the lower half after {len(devs)} seed{'s' * (len(devs) > 1)}" if stopped else None


class Racing:
    """Seed racing: a configuration ends when the best one is better on the seeds they share, by more than chance allows.

    The 95 % confidence interval is that of the mean difference per seed to the configuration with the best mean among those
    with at least as many seeds; it needs two seeds.
    """

    def __init__(self, num_seeds: int) -> None:
        self.devs: dict[str, list[float]] = {}

    def stops(self, name: str, devs: Sequence[float]) -> str | None:
        """As `Asha.stops`."""
        self.devs[name] = list(devs)
        count = len(devs)
        others = [other for key, other in self.devs.items() if key != name and len(other) >= count]
        if count < 2 or not others:
            return None
        best = max(others, key=statistics.fmean)
        ahead = [theirs - own for theirs, own in zip(best, devs, strict=False)]
        margin = T95[min(count - 1, len(T95)) - 1] * statistics.stdev(ahead) / math.sqrt(count)
        mean = statistics.fmean(ahead)
        return f"racing: {mean:.1f} ± {margin:.1f} behind the best after {count} seeds" if mean > margin else None


STOPPERS = {"none": None, "asha": Asha, "racing": Racing}


class Tpe:
    """Optuna's TPE over a search's space."""

    def __init__(self, search: Search, seed: int) -> None:
        from optuna.samplers import TPESampler  # noqa: PLC0415  (slow to import)

        self.space = {key: distribution(dimension) for key, dimension in search.space.items()}
        self.lists = {key for key, dimension in search.space.items() if dimension.values is not None}
        self.own = OptunaSearch(space=dict(self.space), metric="dev", mode="max", sampler=TPESampler(seed=seed))

    def suggest(self, trial: str) -> dict[str, Any]:
        """The next values to try."""
        found = self.own.suggest(trial) or {}
        return {key: json.loads(found[key]) if key in self.lists else found[key] for key in self.space}

    def learn(self, trial: str, dev: float | None) -> None:
        """What came of a suggestion; None where it failed."""
        self.own.on_trial_complete(trial, None if dev is None else {"dev": dev}, error=dev is None)

    def remember(self, values: dict[str, Any], dev: float | None) -> None:
        """What came of values tried before; those outside of the space tell nothing."""
        named = {key: json.dumps(values.get(key)) if key in self.lists else values.get(key) for key in self.space}
        if all(_fits(self.space[key], value) for key, value in named.items()):
            self.own.add_evaluated_point(named, 0.0 if dev is None else dev, error=dev is None)

    @property
    def known(self) -> list[tuple[dict[str, Any], float | None]]:
        """Every finished trial the sampler can draw on: values and score."""
        return [(trial.params, trial.value) for trial in self.own._ot_study.trials if trial.state.is_finished()]  # pyright: ignore[reportOptionalMemberAccess]


def _fits(space: Any, value: Any) -> bool:
    try:
        return bool(space._contains(space.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


def distribution(dimension: Dimension) -> Any:
    """A dimension as Optuna's; listed values by their JSON, so that any can be one."""
    from optuna import distributions  # noqa: PLC0415

    if dimension.values is not None:
        return distributions.CategoricalDistribution([json.dumps(value) for value in dimension.values])
    if dimension.range is not None:
        low, high, *step = dimension.range
        return distributions.IntDistribution(low, low + (high - low) // (step or [1])[0] * (step or [1])[0], step=(step or [1])[0])
    low, high = dimension.uniform or dimension.log or (0.0, 1.0)
    return distributions.FloatDistribution(low, high, log=dimension.log is not None)


class Study:
    """A place of the table under way: what is still to run there, and what of it is chosen and tested.

    Raises:
        UserError: a configuration does not fit, checked before anything runs.
    """

    def __init__(self, place: Place, book: Book) -> None:
        self.place, self.book, self.search = place, book, place.search
        self.live: dict[str, Configuration] = {}
        self.chosen: Configuration | None = None
        self.queue: deque[Configuration] = deque()
        self.begun, self.proposed = 0, set[str]()
        adaptive = place.listed() is None
        self.tpe = Tpe(place.search, int(place.study[:8], 16)) if adaptive and place.search else None
        self.seeds = len(place.job(self.example).seeds)
        self.means: dict[str, tuple[str, float]] = {}
        self.waiting: dict[str, int] = {}
        stopper = STOPPERS[self.search.scheduler] if self.search else None
        self.stopper = stopper(self.seeds) if stopper else None
        for configuration in book.tried(place):
            self._resume(configuration)
        for configuration in self.queue:
            book.check(configuration)

    @property
    def example(self) -> dict[str, Any] | None:
        """Values of the space, where any will do."""
        return self.search.drawn(random.Random(0)) if self.search else None

    @property
    def left(self) -> int:
        """Cells that wait to be run, the chosen one's tests not counted."""
        return sum(self.waiting[configuration.name] for configuration in self.queue) + (self.budget - self.begun) * self.seeds

    @property
    def untested(self) -> bool:
        """Whether what dev prefers now still has to be tested."""
        best = self.best() if self.search else None
        return best is not None and not all(self.book.where(best, seed, test=True) for seed in best.keys)

    @property
    def leader(self) -> tuple[str, float] | None:
        """The best mean on dev so far and what it was reached with."""
        return max(self.means.values(), key=lambda found: found[1], default=None)

    @property
    def budget(self) -> int:
        """Configurations in all."""
        if self.tpe is not None and self.search is not None:
            return max(self.search.trials or 0, self.begun)
        return self.begun

    def todo(self, configuration: Configuration) -> list[int]:
        """The seeds that have no result yet."""
        return [seed for seed in configuration.keys if self.book.where(configuration, seed, test=self.search is None) is None]

    def _resume(self, configuration: Configuration) -> None:
        """Take up a configuration where the ledger and the run folders say it stands."""
        self.begun += 1
        todo = self.todo(configuration)
        self.waiting[configuration.name] = len(todo)
        devs = [self._found(configuration, seed) for seed in configuration.keys if seed not in todo]
        states = {self.book.ledger.get(key).get("status") for key in configuration.keys.values()}
        over = "pruned" in states or len(devs) == self.seeds or (self.tpe is not None and "failed" in states)
        known = [dev for dev in devs if dev is not None]
        if self.stopper is not None:
            for count in range(1, len(known) + 1):
                self.stopper.stops(configuration.name, known[:count])
        if known and len(known) == self.seeds:
            self.means[configuration.name] = (configuration.label, statistics.fmean(known))
        if not over:
            self.queue.append(configuration)
        elif self.tpe is not None:
            self.tpe.remember(configuration.values, statistics.fmean(known) if known and "failed" not in states else None)

    def _found(self, configuration: Configuration, seed: int) -> float | None:
        """The dev score of a finished cell, which the ledger then knows."""
        entry = self.book.ledger.get(configuration.keys[seed])
        if entry.get("status") == "finished":
            return entry["dev"]
        result = self.book.result(configuration, seed) or {}
        folder = self.book.where(configuration, seed, test=False)
        self.book.note(configuration, seed, "finished", dev=result.get("dev"), folder=str(folder))
        return result.get("dev")

    def next(self, trial: str) -> tuple[Configuration, bool] | None:
        """What to run now, and whether it is tested; None where nothing is to run, or not yet."""
        if self.queue:
            self.live[trial] = self.queue.popleft()
            return self.live[trial], self.search is None
        if self.tpe is not None and self.begun < self.budget:
            return self._propose(trial)
        if self.live or self.search is None or self.chosen is not None:
            return None
        self.chosen = self.best()
        if self.chosen is None or all(self.book.where(self.chosen, seed, test=True) for seed in self.chosen.keys):
            return None
        self.live[trial] = self.chosen
        return self.chosen, True

    def _propose(self, trial: str) -> tuple[Configuration, bool] | None:
        assert self.tpe is not None
        while self.begun < self.budget:
            self.begun += 1
            values = self.tpe.suggest(trial)
            try:
                configuration = self.book.configuration(self.place, values)
                self.book.check(configuration)
            except UserError as error:
                self.tpe.learn(trial, None)
                self.book.ledger.note(cell=f"unfit/{self.place.study}/{json.dumps(values)}", status="failed", reason=str(error), study=None, config="")
                continue
            self.live[trial] = configuration
            self.proposed.add(trial)
            return configuration, False
        return None

    def over(self, trial: str, dev: float | None, whole: bool) -> Configuration:
        """A trial has ended, with its mean on dev or, having failed, without; `whole`: over all seeds."""
        configuration = self.live.pop(trial)
        if dev is not None and whole:
            self.means[configuration.name] = (configuration.label, dev)
        if trial in self.proposed and self.tpe is not None:
            self.tpe.learn(trial, dev)
        elif self.tpe is not None and configuration is not self.chosen:
            self.tpe.remember(configuration.values, dev)
        return configuration

    def best(self) -> Configuration | None:
        """The configuration with the best mean on dev among those with all seeds; the first of equals as the file lists them."""
        assert self.search is not None
        scored = []
        for configuration in self.book.tried(self.place):
            entries = [self.book.ledger.get(key) for key in configuration.keys.values()]
            if all(entry.get("status") == "finished" and entry.get("dev") is not None for entry in entries):
                scored.append((statistics.fmean(entry["dev"] for entry in entries), configuration))
        scored.sort(key=lambda found: self.search.order(found[1].values) if self.search else [])
        return max(scored, key=lambda found: found[0])[1] if scored else None
