"""A job with its names looked up, once: what everything after loading takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from raypft.config.job import Job
from raypft.data.origin import Origin, choose
from raypft.data.sampling import Protocol
from raypft.methods.base import Config as MethodConfig
from raypft.methods.base import Method
from raypft.readouts.base import Config as ReadoutConfig
from raypft.readouts.base import Readout
from raypft.tasks.task import Pattern, Task


@dataclass(frozen=True, eq=False)
class ResolvedJob:
    """A valid job: its task and pattern, the classes of its method and readout with their configurations, its
    protocol."""

    job: Job
    task: Task
    pattern: Pattern
    method: type[Method]
    method_config: MethodConfig
    readout: type[Readout]
    readout_config: ReadoutConfig
    protocol: Protocol

    @cached_property
    def origin(self) -> Origin:
        """Where its rows come from.

        Raises:
            UserError: the task has no such source, a source of files needs `data.root`, or `data.revision` is that of
            nothing.
        """
        data = self.job.data
        return choose(self.task, data.source, data.root, self.job.shots, data.revision)

    def sample_seed_of(self, seed: int) -> int:
        """The seed that draws the rows of a cell."""
        return self.job.sample_seed + (seed if self.protocol.sample_per_seed else 0)
