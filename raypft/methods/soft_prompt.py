"""Soft prompts: trained vectors in place of the embeddings of the pattern's <soft> tokens (SP, MP).

Source: Zhao & Schuetze 2021 (SP, MP), prompt encoder as in their P-tuning code; Lottery Ticket Prompt-learning,
section 3.2.
Formula: e = MLP(BiLSTM(E)), E in R^{P x H}; BiLSTM H -> 2H (one layer), MLP 2H -> H, ReLU, H -> H. e stands at the P
soft positions of every prompt; the encoder sees the prompt only, so e is the same for all rows of a step.
Differs: a prompt that is too long loses the end of its longer field, where the official code leaves room for the
special tokens twice and cuts the hypothesis first. `encoder: none` (E used directly) and `train_backbone: false` are
ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor, nn

from raypft.batch import Batch
from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class PromptConfig(base.Config):
    """length: soft tokens P; encoder: how they are reparameterised."""

    length: int = Field(default=4, ge=1)
    encoder: Literal["lstm", "none"] = "lstm"

    @property
    def soft_tokens(self) -> int:
        return self.length


class Config(PromptConfig):
    """The prompt's keys; train_backbone: whether the model trains too."""

    train_backbone: bool = True


class PromptEncoder(nn.Module):
    """P trained vectors, reparameterised by a BiLSTM and an MLP.

    Shapes: () -> [P, H].
    """

    behind_a_beginning = True  # soft tokens stand behind the demonstrations

    def __init__(self, length: int, hidden: int, encoder: str) -> None:
        super().__init__()
        self.embedding = nn.Parameter(nn.Embedding(length, hidden).weight.detach())
        self.lstm = nn.LSTM(hidden, hidden, bidirectional=True, batch_first=True) if encoder == "lstm" else None
        self.mlp = (
            nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
            if encoder == "lstm"
            else None
        )

    def vectors(self) -> Tensor:
        """The prompt, [P, H]."""
        if self.lstm is None or self.mlp is None:
            return self.embedding
        return self.mlp(self.lstm(self.embedding.unsqueeze(0))[0]).squeeze(0)

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        """Word embeddings [B, T, H] with the rows at `batch.soft` [B, P] replaced."""
        if batch.soft is None:  # demonstrations alone
            return states
        prompt = self.vectors()
        at = batch.soft.unsqueeze(-1).expand(-1, -1, states.shape[-1])
        return states.scatter(1, at, prompt.to(states.dtype).expand(len(states), -1, -1))


def encoder_parameters(length: int, hidden: int, encoder: str) -> int:
    """Size of the prompt encoder: P x H vectors, two LSTM directions, two linear layers."""
    lstm = 2 * (4 * hidden * (hidden + hidden) + 8 * hidden)
    mlp = (2 * hidden * hidden + hidden) + (hidden * hidden + hidden)
    return length * hidden + (lstm + mlp if encoder == "lstm" else 0)


class SoftPrompt(base.Method):
    """A prompt encoder behind the word embeddings; the backbone trains too unless told otherwise."""

    Config = Config
    marks = ("soft",)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.prompt = PromptEncoder(config.length, backbone.embedding_size, config.encoder)
        backbone.on_embed(self.prompt)
        if config.train_backbone:
            backbone.open("*")

    def parts(self) -> dict[str, Tensor]:
        return {"prompt": self.prompt.vectors()}

    def predicted_parameters(self) -> int:
        encoder = encoder_parameters(self.config.length, self.backbone.embedding_size, self.config.encoder)
        if not self.config.train_backbone:
            return encoder
        return encoder + sum(p.numel() for p in self.backbone.model.parameters())


Method = SoftPrompt
