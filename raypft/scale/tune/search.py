"""What a search tries next (Optuna's TPE) and which configuration it stops between its seeds.

Both are fed from the ledger, in the order configurations began (table_cell_search.py): no other state is to restore.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from raypft.campaigns.search_space import Dimension, Search

T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Two-sided 95 % quantiles of Student's t, 1 to 10 degrees of freedom; above, the last, which is wider than theirs."""


class Asha:
    """Ray's ASHA over seeds: after 1, 2, 4, ... seeds the better half goes on."""

    def __init__(self, num_seeds: int) -> None:
        self.scheduler = AsyncHyperBandScheduler(
            time_attr="seeds_done",
            metric="dev",
            mode="max",
            max_t=num_seeds,
            grace_period=1,
            reduction_factor=2,
            stop_last_trials=False,
        )

    def stops(self, name: str, devs: Sequence[float]) -> str | None:
        """The reason to stop a configuration after a seed, None to go on.

        Args:
            name: of the configuration; devs: dev score of each seed done, in order.
        """
        controller: Any = None
        trial: Any = SimpleNamespace(trial_id=name)
        if name not in self.scheduler._trial_info:
            self.scheduler.on_trial_add(controller, trial)
        result = {"seeds_done": len(devs), "dev": statistics.fmean(devs)}
        decision = self.scheduler.on_trial_result(controller, trial, result)
        if decision != TrialScheduler.STOP:
            return None
        return f"asha: in the lower half after {len(devs)} seed{'s' * (len(devs) > 1)}"


class Racing:
    """Seed racing: a configuration ends when the best one is better on the seeds they share by more than chance allows.

    The 95 % confidence interval is that of the mean difference per seed to the configuration with the best mean among
    those with at least as many seeds; it needs two seeds.
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
        ahead = [theirs - ours for theirs, ours in zip(best, devs, strict=False)]
        margin = T95[min(count - 1, len(T95)) - 1] * statistics.stdev(ahead) / math.sqrt(count)
        mean = statistics.fmean(ahead)
        return f"racing: {mean:.1f} ± {margin:.1f} behind the best after {count} seeds" if mean > margin else None


STOPPERS = {"none": None, "asha": Asha, "racing": Racing}


class Tpe:
    """Optuna's TPE over a search's space.

    Args:
        seed: of its sampler; another one after every restart, else it would suggest its first values again.
    """

    def __init__(self, search: Search, seed: int) -> None:
        from optuna import logging  # noqa: PLC0415  (slow to import)
        from optuna.samplers import TPESampler  # noqa: PLC0415

        logging.set_verbosity(logging.ERROR)
        self.space = {key: distribution(dimension) for key, dimension in search.space.items()}
        self.lists = {key for key, dimension in search.space.items() if dimension.values is not None}
        self.sampler = OptunaSearch(space=dict(self.space), metric="dev", mode="max", sampler=TPESampler(seed=seed))

    def suggest(self, trial: str) -> dict[str, Any]:
        """The next values to try."""
        suggested = self.sampler.suggest(trial) or {}
        return {key: json.loads(suggested[key]) if key in self.lists else suggested[key] for key in self.space}

    def learn(self, trial: str, dev: float | None) -> None:
        """What came of a suggestion; None where it failed."""
        self.sampler.on_trial_complete(trial, None if dev is None else {"dev": dev}, error=dev is None)

    def remember(self, values: dict[str, Any], dev: float | None) -> None:
        """What came of values tried before; those outside of the space tell nothing."""
        named = {key: json.dumps(values.get(key)) if key in self.lists else values.get(key) for key in self.space}
        if all(_fits(self.space[key], value) for key, value in named.items()):
            self.sampler.add_evaluated_point(named, 0.0 if dev is None else dev, error=dev is None)

    @property
    def known(self) -> list[tuple[dict[str, Any], float | None]]:
        """Every finished trial the sampler can draw on: values and score."""
        study: Any = self.sampler._ot_study
        return [(trial.params, trial.value) for trial in study.trials if trial.state.is_finished()]


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
        low, high, step = (*dimension.range, 1)[:3]
        return distributions.IntDistribution(low, low + (high - low) // step * step, step=step)
    low, high = dimension.uniform or dimension.log or (0.0, 1.0)
    return distributions.FloatDistribution(low, high, log=dimension.log is not None)
