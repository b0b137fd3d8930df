"""Label words: the score of a label is the vocabulary score of its word at the slot; only those columns are computed.

Source: Schick & Schuetze 2021 (PET); Ma et al. 2023 (ProFiT), section 3: s(y) = mean over words w of v(y) of
logit[slot, w], softmax over the labels.

calibration: contextual. Source: Zhao et al. 2021 (Calibrate Before Use), section 5: p(y) is divided by what the same
prompt says to texts without content, the mean over "N/A", "" and "[MASK]"; their W = diag(p_cf)^-1, b = 0.
Differs: scores are the quotients divided by their sum, where their equation takes a softmax of them (the answer is the
same); all fields of a row are such a text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from raypft.backbones.text import PromptTokenizer
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.readouts import base
from raypft.tasks.task import Mode, Pattern, Task, Wording

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone

CONTENT_FREE = ("N/A", "", "[MASK]")
LEAST = 1e-38
"""A probability below which fp32 has none."""


class Config(base.Config):
    """mode: replaces the pattern's way of looking label words up. ProFiT's code takes the piece that begins a word
    (`word_initial`), ToPro's looks the bare word up (`raw_piece`), Zhao & Schuetze's takes the last piece.

    calibration: contextual, of a model that is asked as it is: see above."""

    mode: Mode | None = None
    calibration: Literal["contextual"] | None = None

    @property
    def content_free(self) -> tuple[str, ...]:
        return CONTENT_FREE if self.calibration else ()


def word_columns(text: PromptTokenizer, word: str, mode: Mode, blank: str, where: str) -> list[int]:
    """The vocabulary columns of one label word.

    Raises:
        UserError: the word splits, or is unknown, and the mode does not say what to do then.
    """
    if mode == "raw_piece":
        column = text.tokenizer.get_vocab().get(word)
        if column is None:
            raise UserError(
                f'{where}: "{word}" is no piece of the vocabulary (mode raw_piece); use readout.mode=word_initial'
            )
        return [column]
    ids = text.word_ids(word, blank)
    if not ids:
        raise UserError(f'{where}: "{word}" is no token for this backbone; choose another word')
    if text.tokenizer.unk_token_id in ids and text.tokenizer.unk_token_id is not None:
        raise UserError(f'{where}: "{word}" holds a piece unknown to this vocabulary; choose another word')
    if mode == "first_piece":
        return ids[:1]
    if mode == "last_piece":
        return ids[-1:]
    if mode in ("word_initial", "mean") and len(ids) != 1:
        pieces = text.tokenizer.convert_ids_to_tokens(ids)
        raise UserError(
            f'{where}: "{word}" is {len(ids)} tokens for this backbone {pieces}; '
            "choose one token or set mode: first_piece"
        )
    return ids


def label_columns(
    text: PromptTokenizer, task: Task, wording: Wording, mode: Mode | None, where: str
) -> list[list[int]]:
    """The vocabulary columns of each label, in label order.

    Raises:
        UserError: see `word_columns`; several words without mode mean; two labels with the same column.
    """
    blank = " " if " <slot>" in (wording.text or "") else ""
    mode = mode or wording.mode or "word_initial"
    columns = []
    for name in task.label.names:
        words = (wording.verbalizer or {})[name]
        words = [words] if isinstance(words, str) else words
        if len(words) > 1 and mode != "mean":
            raise UserError(f"{where}.{name}: found {len(words)} words; expected one, or mode: mean")
        each = [word_columns(text, word, mode, blank, f"{where}.{name}") for word in words]
        columns.append(list(itertools.chain.from_iterable(each)))
    for i, of_label in enumerate(columns):
        for j in range(i):
            if sorted(of_label) == sorted(columns[j]):
                raise UserError(
                    f"{where}: {task.label.names[j]} and {task.label.names[i]} have the same token {of_label}; "
                    "choose other words"
                )
    return columns


class Verbalizer(base.Readout):
    """Scores are means over each label's columns of the language-model head, which has no parameters of its own
    here."""

    Config = Config
    reads_vocabulary = True
    backbone: Backbone
    used: Tensor
    share: Tensor

    def __init__(self, config: Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__(config, task, pattern, backbone)
        vars(self)["backbone"] = backbone  # its parameters belong to the method
        wordings = []
        for language in ["", *pattern.by_language]:
            where = f"task {task.name}: verbalizer" + (f" ({language})" if language else "")
            wordings.append(label_columns(backbone.text, task, pattern.wording(language), config.mode, where))
        used = sorted(set(itertools.chain.from_iterable(itertools.chain.from_iterable(wordings))))
        share = torch.zeros(len(wordings), len(used), len(task.label.names))
        for i, wording in enumerate(wordings):
            for label, columns in enumerate(wording):
                for column in columns:
                    share[i, used.index(column), label] += 1 / len(columns)
        self.register_buffer("used", torch.tensor(used), persistent=False)
        self.register_buffer("share", share, persistent=False)
        self.wordings = wordings

    def scores(self, states: Tensor, batch: Batch) -> Tensor:
        each = self.backbone.vocabulary_scores(states, self.used)  # [S, n], n columns used by any language
        share = self.share[batch.wording].to(each.dtype)
        return torch.bmm(each.unsqueeze(1), share).squeeze(1)  # [S, 1, n] x [S, n, C]

    def gather(self, prompts: Sequence[Encoded], answers: Sequence[base.Answer]) -> tuple[Any, list[float]]:
        if not self.task.kind.one_label or len(answers) == 1:
            return super().gather(prompts, answers)
        own, *free = [torch.tensor(answer.scores, dtype=torch.float64) for answer in answers]
        quotients = own / torch.stack(free).mean(0).clamp(min=LEAST)
        scores = (quotients / quotients.sum()).tolist()
        return self._named([max(range(len(scores)), key=scores.__getitem__)]), scores


Readout = Verbalizer
