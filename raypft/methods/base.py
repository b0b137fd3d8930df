"""What a method is: trainable parameters put into a frozen backbone through its seams, and a forward pass to slot
states.

To add one, write `raypft/methods/<name>.py` with a subclass of `Method`, named to the folder by a last line
`Method = <its name>`, and a test; the contract suite finds it. Or keep the file where you like: `method=my/file.py`
uses it, `raypft contract my/file.py` checks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.schema import Strict
from raypft.tasks.kinds import KINDS

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class Config(Strict):
    """A method's YAML keys; a method subclasses this."""

    @property
    def soft_tokens(self) -> int:
        """How many soft tokens <soft> stands for, P."""
        return 0

    def artefact(self) -> str:
        """Hash of the file this method starts from, which is part of the cell key; empty where there is none."""
        return ""

    @property
    def positions_taken(self) -> int:
        """How many of the model's positions the method takes before the text's."""
        return 0


@dataclass(frozen=True)
class Result:
    """What is kept of a training, told without its values, which come one at a time.

    file: its name in the cell's folder; names: of a trained parameter in the learner to that in the file, in the
    learner's order; change: of the name in the file and the trained value, fp32 on CPU, to what is kept; metadata: what
    the file says of itself, asked when all values have come.
    """

    file: str
    names: dict[str, str]
    change: Callable[[str, Tensor], Tensor] = lambda name, value: value
    metadata: Callable[[], dict[str, str]] | None = None


class Method(nn.Module, ABC):
    """The interface of a method.

    A subclass declares, where it differs from what stands here:
        Config: the YAML keys with their defaults.
        numerics: raised when a change alters results; part of the cell key.
        families, kinds: the backbone families and task kinds it works with.
        trains: False where there is nothing to train (zero epochs).
        max_zero_stage: the highest ZeRO stage it works on.
        marks: the marks a pattern must put into every prompt for the method to mean anything.

    It puts its parameters into the backbone in `__init__`, through seams, and says in `predicted_parameters` how many
    there are. `constant_below`, set in `__init__`, is the number of blocks whose output never changes while training;
    their states may be cached. All else has an answer here that a method replaces where it has its own.
    """

    Config: type[Config] = Config
    config: Any
    """Of the subclass's own `Config`."""
    backbone: Backbone
    numerics: int = 1
    families: tuple[str, ...] = ("masked", "causal", "seq2seq")
    kinds: tuple[str, ...] = tuple(KINDS)
    trains: bool = True
    max_zero_stage: int = 3
    marks: tuple[str, ...] = ()

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.constant_below = 0

    def columns(self, prompt: Encoded) -> dict[str, Any]:
        """A method's own data for one prompt, made on CPU; reaches `forward` as `batch.extra`, its tensors moved."""
        return {}

    def penalty(self) -> Tensor | None:
        """A term added to the loss once per optimizer step, or None."""
        return None

    def result(self, names: Iterable[str]) -> Result:
        """What to keep of the trained parameters, which the learner calls so."""
        return Result("trained.safetensors", {name: name for name in names})

    def parts(self) -> dict[str, Tensor]:
        """What the method has beside the backbone, as it is used in answering: name to tensor; for an export."""
        return {name: p for name, p in self.trainable().items() if not name.startswith("backbone.")}

    def notes(self) -> list[str]:
        """What the user should know about the method as built, one line each."""
        return []

    @abstractmethod
    def predicted_parameters(self) -> int:
        """How many trainable parameters the method's formula predicts, readout excluded."""

    def forward(self, batch: Batch) -> Tensor:
        """The states at the slots, [S, H]."""
        return self.backbone(batch)

    @property
    def runs_the_backbone(self) -> bool:
        """Whether `forward` is the backbone's and nothing else, so that a part of it may be run before the rest."""
        return type(self).forward is Method.forward

    @property
    def backbone_moves(self) -> bool:
        """Whether weights of the pretrained model train; its dropout is active only then."""
        return any(p.requires_grad for p in self.backbone.parameters())

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        for module in self.children():
            module.train(mode and (module is not self.backbone or self.backbone_moves))
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name to trainable parameter."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}
