"""Linear probe: the scores of the labels are a linear map of the state at the slot.

Source: Alain & Bengio 2017, section 3.
Formula: s = A h + b, h in R^H the state, A in R^{C x H}.
"""

from torch import Tensor, nn

from raypft.backbones.base import Backbone
from raypft.batch import Batch
from raypft.readouts import base
from raypft.tasks.task import Pattern, Task


class Config(base.Config):
    """bias: whether b is there."""

    bias: bool = True


class LinearProbe(base.Readout):
    """[S, H] -> [S, C]."""

    Config = Config
    needs_slot = False

    def __init__(self, config: Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__(config, task, pattern, backbone)
        self.linear = nn.Linear(backbone.hidden, len(task.label.names), bias=config.bias)

    def scores(self, states: Tensor, batch: Batch) -> Tensor:
        return self.linear(states)


Readout = LinearProbe
