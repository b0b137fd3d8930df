"""Text-to-text: the decoder writes the answer; every target position is a slot, its scores are over the whole
vocabulary.

Source: Raffel et al. 2020; Ma et al. 2024 (ToPro), mT5: the target of a word's prompt is its tag, cut or padded to 5
tokens, and padding is trained on (`pad_to: 5`). A sentence asked as a whole (no {token}) is answered
"TAG: word $$ TAG: word". What is cut keeps its end token.
Differs: answers may be of any length, where those of ToPro's vanilla rows have 10 tokens at least. A sentence too long
for one prompt is asked in parts, where ToPro's vanilla cuts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field
from torch import Tensor, nn

from raypft.backbones.text_seq2seq import Seq2SeqTokenizer
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.readouts import base
from raypft.readouts._decoding import Speaker, beam_search, greedy
from raypft.readouts.base import Answer
from raypft.tasks.metrics import WORD_SEPARATOR
from raypft.tasks.task import Pattern, Task

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class Config(base.Config):
    """longest: tokens of an answer at most; beams: how many answers are followed at once, 1: the likeliest token each
    time; pad_to: targets get this many tokens, longer ones are cut before their end token, and the padding is trained
    on."""

    longest: int = Field(default=8, ge=1)
    beams: int = Field(default=1, ge=1)
    pad_to: int | None = Field(default=None, ge=1)


class TextReadout(base.Readout):
    """Decoding; an answer that is a label's word, as far as targets hold it, stands for the label."""

    Config = Config
    numerics = 2
    kinds = ("choice", "tags", "text")
    families = ("seq2seq",)
    needs_slot = False
    reads_vocabulary = True
    writes = True
    backbone: Backbone

    def __init__(self, config: Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__(config, task, pattern, backbone)
        self.longest, self.beams = config.longest, config.beams
        vars(self)["backbone"] = backbone  # its parameters belong to the method
        text = cast(Seq2SeqTokenizer, backbone.text)
        self.asks_sentences = task.kind.answers_words and "{token}" not in pattern.text
        self.labels: list[dict[str, str]] = []
        """Label word to label, one map a wording: a word may stand for another label in another language."""
        for language in ["", *pattern.by_language]:
            labels: dict[str, str] = {}
            cut: dict[str, str] = {}
            verbalizer = pattern.wording(language).verbalizer or {name: name for name in task.label.names}
            for label, words in verbalizer.items():
                for word in [words] if isinstance(words, str) else words:
                    labels[word] = label
                    target = _target(config, word, backbone.text)
                    if len(target) < len(text.answer_ids(word)):
                        cut.setdefault(text.answer_texts([target])[0], label)
            self.labels.append(cut | labels)

    @staticmethod
    def prepare(config: Config, prompt: Encoded, text: Any) -> Encoded:
        start = prompt.target[:1]
        ids = _target(config, WORD_SEPARATOR.join(prompt.answers), text)
        return replace(
            prompt, marks={**prompt.marks, "slot": list(range(len(ids)))}, gold=ids, target=[*start, *ids[:-1]]
        )

    @staticmethod
    def scored(config: Config, tokens: int) -> float:
        return config.pad_to or config.longest

    def scores(self, states: Tensor, batch: Batch) -> Tensor:
        return self.backbone.vocabulary_scores(states)

    def answer(self, method: nn.Module, batch: Batch) -> list[Answer]:
        speaker = Speaker(method, self.backbone, batch, self.beams)
        end = self.backbone.text.tokenizer.eos_token_id
        if self.beams == 1:
            said, chance = greedy(speaker, self.longest, end)
        else:
            said, chance = beam_search(speaker, self.beams, self.longest, end, self.backbone.pad)
        told = zip(batch.names, self._spelled(said.tolist()), chance.exp().tolist(), strict=True)
        return [Answer(name, text, [p]) for name, text, p in told]

    def gather(self, prompts: Sequence[Encoded], answers: Sequence[Answer]) -> tuple[Any, list[float]]:
        said = []
        for prompt, answer in zip(prompts, answers, strict=True):
            texts = [answer.value]
            if self.asks_sentences:
                size = len(prompt.answers)
                texts = ([tag_of(part) for part in answer.value.split(WORD_SEPARATOR.strip())] + [""] * size)[:size]
            said += [self._label(prompt, text) for text in texts]
        return said if self.task.kind.answers_words else said[0], base.scores_of(answers)

    def gold(self, prompts: Sequence[Encoded]) -> Any:
        labels = []
        for prompt in prompts:
            texts = map(tag_of, prompt.answers) if self.asks_sentences else prompt.answers
            labels += [self._label(prompt, text) for text in texts]
        return labels if self.task.kind.answers_words else labels[0]

    def written(self, prompts: Sequence[Encoded], answers: Sequence[Answer]) -> tuple[str, str] | None:
        if not self.asks_sentences:
            return None
        asked = self._spelled([prompt.gold for prompt in prompts])
        return WORD_SEPARATOR.join(asked), WORD_SEPARATOR.join(answer.value for answer in answers)

    def _spelled(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return cast(Seq2SeqTokenizer, self.backbone.text).answer_texts(ids)

    def _label(self, prompt: Encoded, text: str) -> str:
        return self.labels[prompt.wording].get(text, text)


def _target(config: Config, answer: str, text: Any) -> list[int]:
    """The token ids of an answer, its end included; as many as `pad_to` says."""
    *ids, end = text.answer_ids(answer)
    if config.pad_to is None:
        return [*ids, end]
    kept = [*ids[: config.pad_to - 1], end]
    return kept + [text.tokenizer.pad_token_id] * (config.pad_to - len(kept))


def tag_of(text: str) -> str:
    """The tag in "TAG: word"."""
    return text.partition(": ")[0].strip()


Readout = TextReadout
