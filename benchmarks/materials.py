"""What the benchmarks run on, all made in memory from a seed: random models of real shapes, tokenizers, sentences whose
lengths and words are spread as those of real ones, and rows of the catalogue's tasks encoded by the package."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raypft.backbones.base import Backbone
from raypft.backbones.load import backbone_from_config
from raypft.encoded import Encoded
from raypft.methods import METHODS
from raypft.readouts import READOUTS
from raypft.tasks.load import load_task
from raypft.tasks.query import Demonstration
from raypft.tasks.task import Pattern, Task
from raypft.training.encode import Encoder
from raypft.training.stepper import Learner

SPECIAL = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MEAN_WORDS, COMMON = 16, ("the", "of", "and", "to", "a", "in", "is", "that", ",", ".")
"""Words of a sentence of Universal Dependencies, and what it repeats."""


def lexicon(size: int, seed: int = 0) -> list[str]:
    """Words by falling frequency: the common ones, then words of two to four syllables."""
    draw = random.Random(seed)
    words = dict.fromkeys(COMMON)
    while len(words) < size:
        syllables = [draw.choice("bcdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(2, 4))]
        words["".join(syllables)] = None
    return list(words)


def sentences(count: int, seed: int = 0, size: int = 5000) -> list[list[str]]:
    """Sentences of 2 to 80 words, 16 in the mean as in UDPOS (log-normal), the n-th word 1/n as often as the first."""
    draw, words = random.Random(seed), lexicon(size)
    shares = list(itertools.accumulate(1 / rank for rank in range(1, size + 1)))
    lengths = [min(80, max(2, round(draw.lognormvariate(2.6, 0.6)))) for _ in range(count)]
    return [draw.choices(words, cum_weights=shares, k=length) for length in lengths]


def real_sentences(folder: Path, count: int) -> list[list[str]]:
    """The words of the first rows of a folder's train.parquet with a column `tokens`."""
    return pa_parquet.read_table(folder / "train.parquet", columns=["tokens"]).slice(0, count)["tokens"].to_pylist()


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token a word, a sign of punctuation or a line break."""
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL.values(), "\n", *words]))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[SEP]", **SPECIAL)


def piece_tokenizer(texts: Sequence[str], whole: Sequence[str], sentinel: bool = False) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's, trained on texts; each word of `whole` is one piece."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=3000, special_tokens=list(SPECIAL.values()), show_progress=False, continuing_subword_prefix="##"
    )
    inner.train_from_iterator([*texts, *(" ".join(whole) for _ in range(1000))], trainer)
    begin, end = ((token, inner.token_to_id(token)) for token in ("[CLS]", "[SEP]"))
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[begin, end]
    )
    more = ["<extra_id_0>"] if sentinel else []
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="[SEP]",
        additional_special_tokens=more,
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
        **SPECIAL,
    )


def made(config: Any, tokenizer: Any, seed: int = 0) -> Backbone:
    """A random backbone, the same for the same seed; all dropout rates of its configuration are to be 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return backbone_from_config(config, tokenizer)


@dataclass(frozen=True)
class Material:
    """A task's pattern, a random model, and the encoder of its rows."""

    task: Task
    pattern: Pattern
    backbone: Backbone
    encoder: Encoder

    def encoded(self, rows: Sequence[dict[str, Any]]) -> list[Encoded]:
        """The prompts of rows."""
        return list(itertools.chain.from_iterable(map(self.encoder, rows)))

    def learner(self, method: str, readout: str = "verbalizer", seed: int = 0, **options: Any) -> Learner:
        """A method on the reset model, and what reads its answers; `options` are keys of the method."""
        self.backbone.reset()
        torch.manual_seed(seed)
        makes, reads = METHODS.load(method), READOUTS.load(readout)
        config = self.encoder.readout_config if readout == "text" else reads.Config()
        return Learner(
            makes(makes.Config(**options), self.backbone), reads(config, self.task, self.pattern, self.backbone)
        )


def material(
    task: str,
    pattern: str,
    backbone: Backbone,
    readout: str = "verbalizer",
    demos: Sequence[Demonstration] = (),
    **keys: Any,
) -> Material:
    """A task of the catalogue on a model; `keys` are the readout's."""
    loaded, reads = load_task(task), READOUTS.load(readout)
    asks = loaded.pattern(pattern)
    tokens = 128 if loaded.kind.answers_words else 1024
    encoder = Encoder(loaded, asks, backbone.text, 0, tokens, reads, reads.Config(**keys), tuple(demos))
    return Material(loaded, asks, backbone, encoder)


def tagged_rows(words: Sequence[Sequence[str]], names: Sequence[str], start: int = 0) -> list[dict[str, Any]]:
    """Rows of a task of tags; a word always has the same tag."""
    made = []
    for number, sentence in enumerate(words, start):
        tags = [names[sum(map(ord, word)) % len(names)] for word in sentence]
        made.append({"id": str(number), "language": "en", "tokens": list(sentence), "label": tags})
    return made


FEW_SHOT = {"sst2": (72, 114), "trec": (203, 226)}
"""Task to the tokens of its demonstrations, and of a prompt in the mean, as GPT-2 cuts the data sets."""
SPREAD = (0, 3, -3, 1, -1, 2, -2)
"""Sixths of the mean by which the texts are longer, one after the other."""


def few_shot(
    task: str, config: Any, counts: dict[str, int], sizes: tuple[int, int] | None = None
) -> tuple[Material, dict]:
    """A task with a demonstration a class before every prompt: the material, and its prompts by role.

    Args:
        config: of a causal model; its vocabulary is filled with words.
        counts: role to rows; sizes: tokens of the demonstrations and, in the mean, of a prompt; FEW_SHOT's where None.
    """
    loaded = load_task(task)
    asks, names = loaded.pattern("gnnavi"), loaded.label.names
    fixed = list(dict.fromkeys(_plain_words(" ".join([asks.text, *map(str, (asks.verbalizer or {}).values())]))))
    known = [word for word in lexicon(2 * config.vocab_size) if word not in string.punctuation]
    words = known[: config.vocab_size - len(SPECIAL) - 1 - len(fixed)]
    backbone, draw = made(config, word_tokenizer([*fixed, *words])), random.Random(1)
    shared, length = sizes or FEW_SHOT[task]

    def rows(role: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
        found = []
        for number, size in enumerate(lengths):
            text = " ".join(draw.choices(words, k=size))
            label = names[number % len(names)]
            found.append({"id": f"{role}-{number}", "language": "en", "text": text, "label": label})
        return found

    def shown(lengths: Sequence[int]) -> list[Demonstration]:
        return [Demonstration(row, row["label"], "en") for row in rows("demo", lengths)]

    least = material(task, "gnnavi", backbone, demos=shown([1] * len(names))).encoded(rows("least", [1]))[0]
    each, more = divmod(shared - least.demo_tokens, len(names))
    demos = shown([1 + each + (number < more) for number in range(len(names))])
    result = material(task, "gnnavi", backbone, demos=demos)
    mean = length - shared - (len(least.ids) - least.demo_tokens) + 1
    prompts = {}
    for role, count in counts.items():
        spread = [max(1, mean + round(mean * part / 6)) for part in itertools.islice(itertools.cycle(SPREAD), count)]
        prompts[role] = result.encoded(rows(role, spread))
    return result, prompts


def _plain_words(text: str) -> list[str]:
    """The words and signs of a pattern or label, without its markup."""
    for markup in ("<demos>", "<slot>", "<sep>", "{text}"):
        text = text.replace(markup, " ")
    for sign in string.punctuation:
        text = text.replace(sign, f" {sign} ")
    return text.split()
