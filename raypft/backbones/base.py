"""The model side of a backbone: from a batch to the states at its slots, and the heads that read them.

Methods touch it through the seams of `seams.py` only; families (masked, causal, seq2seq) are subclasses.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from raypft.backbones.checkpointing import Checkpointed
from raypft.backbones.flops import Meter
from raypft.backbones.frozen_states import FrozenStates
from raypft.backbones.gelu import exchange_gelu
from raypft.backbones.heads import ColumnLinear, classifier, given_states, word_classifier
from raypft.backbones.last_block import LastBlock, can_attend_for, makes_keys_alone
from raypft.backbones.padding import padding
from raypft.backbones.products import exchange_linear
from raypft.backbones.seams import Seams, states_of
from raypft.backbones.sparse import Sparse, in_place
from raypft.backbones.stand_in import StandIn, standing_in
from raypft.backbones.text import PromptTokenizer
from raypft.batch import Batch, Beginning, collate
from raypft.encoded import Encoded
from raypft.errors import UserError


class _Passing(StandIn):
    """Stands in for a block that need not run: passes its input on, in the form in which the block gives its output.

    Args:
        form: makes the output of the input.
    """

    def __init__(self, block: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__(block)
        self.form = form

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return self.form(arguments[0] if arguments else keywords["hidden_states"])


@contextlib.contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    """While open, a module and all its parts are in eval mode."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def lacking(source: str | None, names: Sequence[str]) -> str:
    """The line about a checkpoint without the tensors that make vocabulary scores."""
    return (
        f"backbone: {source} lacks {len(names)} tensors of the language-model head ({names[0]}, ...), which label "
        "words and text answers are read with; give a checkpoint that has them, or use readout=head"
    )


class Known(NamedTuple):
    """What is found out about a model once: its text side, whether it is held in 4 bits, what its files lack, what
    never trains, and which shortcuts give its own states (columns of the output embedding, and that alone behind the
    body; the last block for some rows, its keys alone for the others; beginnings)."""

    text: PromptTokenizer
    quantized: str | None
    lacks: tuple[str, ...]
    fixed: frozenset[str]
    columns: bool
    decoder_alone: bool
    rows: bool
    keys_alone: bool
    beginnings: bool


class Backbone(Seams, ABC):
    """One pretrained model, and its text side beside.

    Args:
        model: a transformers model with a language-model head.
        text: what makes its prompts; None where the model is only run.
        known: what was found out about the same model before; None: it is measured.
    """

    family: str
    lacks: tuple[str, ...]
    """Names of the tensors of the language-model head that the checkpoint has not; nothing may be scored with them."""
    checkpointing: bool
    """Whether blocks keep their inputs alone in training, and run again in the backward pass."""
    text: PromptTokenizer
    """None where the model is only run; typed as if it never were, since all but tests of the model have one."""

    def __init__(self, model: PreTrainedModel, text: PromptTokenizer | None = None, known: Known | None = None) -> None:
        super().__init__(model, measures=known is None)
        self.shortcuts, self.checkpointing = True, False
        if self.scores_by_column:
            self.decoder.__class__ = ColumnLinear
        self.lacks: tuple[str, ...] = ()
        self.text = cast(PromptTokenizer, text)
        self.frozen_states = FrozenStates(self)
        self.flops = Meter()
        self._passing = [_Passing(block, self._form) for block in self._blocks or ()]
        # while the weights are whole: ZeRO-3 shares them out
        self._takes_columns = self._can_take_columns() if known is None else known.columns
        self._decoder_alone = self._scores_by_decoder_alone() if known is None else known.decoder_alone
        self._makes_keys_alone = known is not None and known.keys_alone
        self._reads_rows = self._can_read_rows() if known is None else known.rows
        self._can_begin = self._goes_on_behind_a_beginning() if known is None else known.beginnings

    @property
    def shortcuts(self) -> bool:
        """Whether the last block runs for the tokens alone that are read, what all prompts begin with is run once, and
        frozen layers multiply by oneDNN and GELU is made of a sigmoid, where the model and the machine allow it; False
        for comparison."""
        return self._shortcuts

    @shortcuts.setter
    def shortcuts(self, on: bool) -> None:
        self._shortcuts = on
        exchange_linear(self.model, on)
        exchange_gelu(self.model, on)

    @property
    def known(self) -> Known:
        """What another backbone of the same files need not find out."""
        scores = self._takes_columns, self._decoder_alone
        states = self._reads_rows, self._makes_keys_alone, self._can_begin
        return Known(self.text, self.quantized, self.lacks, self.fixed, *scores, *states)

    @property
    def pad(self) -> int:
        """The token id that fills batches; 0 without a text side, since no one looks there."""
        return 0 if self.text is None else self.text.pad

    @property
    def source(self) -> str | None:
        """The folder the model was read from, None for one made in memory."""
        return None if self.text is None else self.text.source

    @property
    def revision(self) -> str:
        """What identifies the weights (hub commit or content hash)."""
        return "in memory" if self.text is None else self.text.revision

    @property
    def hub(self) -> str | None:
        """The id of the hub model that it is, None for one of this machine."""
        return None if self.text is None else self.text.hub

    @property
    def state_size(self) -> int:
        """Width of the states at the slots: H, but for a model that maps them to another at its end (OPT-350m)."""
        return self.hidden

    # what families differ in

    @abstractmethod
    def arguments(self, batch: Batch) -> dict:
        """What the model's body is called with beside ids and mask."""

    def head(self, num_labels: int) -> nn.Module | None:
        """The family's own classification head, [S, H] -> [S, C], equal to AutoModelForSequenceClassification's; None
        where it has none."""
        return None

    def word_head(self, num_labels: int) -> nn.Module:
        """A head over words, [S, H] -> [S, C], equal to AutoModelForTokenClassification's."""
        return word_classifier(self.config, self.state_size, self._stored_at, num_labels, self.model._modules)

    def _classifier(self, num_labels: int) -> PreTrainedModel | None:
        return classifier(
            AutoModelForSequenceClassification, self.config, self._stored_at, num_labels, self.model._modules
        )

    @property
    def _stored_at(self) -> str | None:
        """Where a head's weights are read; None for a model made in memory and for one without weights."""
        return None if self.on_meta else self.source

    def own_scores(self, states: Tensor) -> Tensor:
        """[S, H] -> [S, V] by the model's own code behind its body."""
        with given_states(self.model, self.model.base_model_prefix, states.unsqueeze(0)):
            some_ids = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)
            return self.model.forward(input_ids=some_ids).logits[0]

    @abstractmethod
    def whole_model(self, batch: Batch) -> Tensor:
        """The scores of the model's own forward pass at every position of a batch, [B, T, V]: for comparison."""

    # running

    def forward(self, batch: Batch) -> Tensor:
        """The states at the slots after all blocks, [S, H]."""
        with self._last_for(batch) if self._reads_few(batch) else contextlib.nullcontext():
            return self.body(batch)[batch.slots[:, 0], batch.slots[:, 1]]

    def body(self, batch: Batch, after: int | None = None) -> Tensor:
        """The states of all tokens after all blocks, [B, T, H]; blocks below `batch.lower` are not run.

        Args:
            after: how many blocks those are; those below the first layer seam where None.
        """
        self._batch = batch
        with self._sparse_put(), self._checkpointed(batch), padding(batch.pads):
            if batch.lower is None:
                self._before_embedding = True
                states = self._run(batch)
                assert not self._before_embedding, "the model did not use its input embedding"
                return states
            with self._known_below(after or min(self._layer_seams), batch.lower.to(self.dtype)):
                return self._run(batch)

    @property
    def takes_beginnings(self) -> bool:
        """Whether what all prompts begin with can be run once, before the rest of them."""
        return False

    def begin(self, batch: Batch, layer: int | None = None, after: int = 0) -> Beginning:
        """Run what all prompts begin with, a batch of one; arguments as of `lower`, all blocks where layer is None."""
        raise NotImplementedError

    def encode(self, batch: Batch) -> Beginning:
        """Run the encoder; a batch with this beginning has the next tokens of its answers as targets."""
        raise NotImplementedError

    @torch.no_grad()
    def lower(self, batch: Batch, layer: int, after: int = 0) -> Tensor:
        """The states after `layer` blocks, [B, T, H], in eval mode and before any layer seam; the blocks above are not
        run.

        Args:
            after: how many blocks stand behind `batch.lower`, and are not run either; 0 where it is None.
        """
        self.check_layer(layer)
        kept: list[Tensor] = []

        def keep(_block: nn.Module, _inputs: tuple, output: Any) -> None:
            kept.append(states_of(output))

        handle = self.blocks[layer - 1].register_forward_hook(keep, prepend=True)
        try:
            with _in_eval(self), self._replaced(range(layer, self.num_layers)), self._seams_off():
                self.body(batch, after)
        finally:
            handle.remove()
        return kept[0]

    def vocabulary_scores(self, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """[S, H] -> [S, n] scores of the given vocabulary columns [n] (all V where None)."""
        if self.lacks:
            raise UserError(lacking(self.source, self.lacks))
        plain = self.model.get_output_embeddings() is self.decoder  # and has no LoRA around it
        scored = self.decoder if plain and self.shortcuts and self._decoder_alone else self.own_scores
        with self._sparse_put():
            if columns is None or not (plain and self._takes_columns):
                scores = scored(states)
                return scores if columns is None else scores[:, columns]
            decoder = cast(ColumnLinear, self.decoder)
            decoder.columns = columns
            decoder.adds_to_embedding = self.decoder_is_tied and not isinstance(decoder._modules.get("weight"), Sparse)
            try:
                return scored(states)
            finally:
                decoder.columns = None

    # inside

    def _reads_few(self, batch: Batch) -> bool:
        """Whether the last block need not run for all tokens: a seam behind it may mix them."""
        few = 2 * batch.read.shape[1] <= batch.ids.shape[1]
        return few and self.shortcuts and self._reads_rows and self.num_layers not in self._layer_seams

    @contextlib.contextmanager
    def _last_for(self, batch: Batch) -> Iterator[None]:
        """The last block gives the states at the slots alone."""
        last = LastBlock(self.blocks[-1], batch, self._makes_keys_alone)
        with standing_in(self.blocks, {len(self.blocks) - 1: last}):
            yield

    @torch.no_grad()
    def _can_read_rows(self) -> bool:
        """Whether the last block, run for some tokens, gives what it gives when run for all (a state-space part beside
        the attention would not)."""
        if self.on_meta or self._blocks is None or self.family == "seq2seq" or not can_attend_for(self.blocks[-1]):
            return False
        self.model.eval()
        length = 8
        some = [3 + (7 * place) % max(1, self.config.vocab_size - 3) for place in range(length)]
        made = [
            Encoded(f"en/{size}", "en", some[:size], [0] * size, {"slot": [place]}) for size, place in ((8, 4), (5, 4))
        ]
        batch = collate(made, 0).to(self.decoder.weight.device)
        prompts, places = batch.slots.unbind(1)
        try:
            whole = self.body(batch)[prompts, places]
        except Exception:  # a model's own code may raise anything on a text that does not suit it: the guard tells
            return False
        try:
            self._makes_keys_alone = makes_keys_alone(self.blocks[-1], lambda: self.body(batch))
            with self._last_for(batch):
                few = self.body(batch)[prompts, places]
        except (RuntimeError, IndexError):  # a block may be given what can't be cut to some tokens: shapes do not fit
            return False
        return float((few - whole).abs().max()) <= 1e-5 * float(whole.abs().max())

    def _can_take_columns(self) -> bool:
        """Whether chosen columns of the output embedding give the model's scores of them: what its code does behind
        that layer may need all (ESM adds a bias of the whole vocabulary)."""
        if self.on_meta or not self.scores_by_column:
            return self.scores_by_column
        self.model.eval()
        decoder = cast(ColumnLinear, self.decoder)
        some = torch.tensor([2, 0, 1], device=decoder.weight.device)
        states = torch.linspace(-1, 1, self.state_size, device=some.device, dtype=self.dtype).unsqueeze(0)
        with torch.no_grad():
            try:
                whole = self.own_scores(states)[:, some]
                decoder.columns = some
                return torch.allclose(self.own_scores(states), whole, rtol=1e-3, atol=1e-3)
            except RuntimeError:  # shapes that do not go together
                return False
            finally:
                decoder.columns = None

    @torch.no_grad()
    def _scores_by_decoder_alone(self) -> bool:
        """Whether the model's code behind its body is its output embedding and nothing else: bit for bit, of small and
        of large states, in both modes."""
        if self.on_meta or not self.scores_by_column:
            return False
        line = torch.linspace(-1, 1, self.state_size, device=self.decoder.weight.device, dtype=self.dtype)
        states, found = torch.stack([line, 1000 * line.flip(0)]), list[bool]()
        for training in (True, False):
            self.model.train(training)
            try:
                whole, alone = self.own_scores(states), self.decoder(states)
                found.append(whole.dtype == alone.dtype and torch.equal(whole, alone))
            except RuntimeError:  # shapes that do not go together
                found.append(False)
        return all(found)

    def _goes_on_behind_a_beginning(self) -> bool:
        """Whether the states of a text's end are the same where its beginning was run before."""
        return False

    def _run(self, batch: Batch) -> Tensor:
        positions = {}
        if self._positions_taken and self.takes("position_ids"):
            first = self.first_position + self._positions_taken + batch.begins
            size, length = batch.ids.shape
            positions["position_ids"] = torch.arange(first, first + length, device=batch.ids.device).expand(size, -1)
        mask = batch.mask
        if batch.begins:
            mask = torch.cat([mask.new_ones(len(mask), batch.begins), mask], dim=1)
        return self.model.base_model(
            input_ids=batch.ids, attention_mask=mask, **positions, **self.arguments(batch)
        ).last_hidden_state

    @contextlib.contextmanager
    def _sparse_put(self) -> Iterator[None]:
        """While open, the model has the values of its sparse parameters in place."""
        with in_place(self._sparse):
            yield

    @contextlib.contextmanager
    def _replaced(self, layers: Sequence[int]) -> Iterator[None]:
        """The blocks with these 0-based numbers pass their input on."""
        with standing_in(self.blocks, {layer: self._passing[layer] for layer in layers}):
            yield

    @contextlib.contextmanager
    def _checkpointed(self, batch: Batch) -> Iterator[None]:
        """While open, blocks keep their inputs alone, where they should and gradients are asked for."""
        placed = list(itertools.chain.from_iterable(sparse.placed() for sparse in self._sparse))

        @contextlib.contextmanager
        def put() -> Iterator[None]:
            others, self._batch = self._batch, batch  # another batch may have run since
            for owner, name, weight in placed:
                vars(owner)[name] = weight
            try:
                yield
            finally:
                self._batch = others
                for sparse in self._sparse:
                    sparse.take()

        with contextlib.ExitStack() as stack:
            for blocks in self.stacks if self.checkpointing and torch.is_grad_enabled() else ():
                others = {layer: Checkpointed(block, put) for layer, block in enumerate(blocks)}
                stack.enter_context(standing_in(blocks, others))
            yield

    @contextlib.contextmanager
    def _known_below(self, cut: int, states: Tensor) -> Iterator[None]:
        """The first `cut` blocks give `states`, then the seams of that layer."""
        given = _Passing(self.blocks[cut - 1], lambda _states: self._form(self._through_seams(cut, states)))
        with self._replaced(range(cut - 1)), standing_in(self.blocks, {cut - 1: given}):
            yield

    @contextlib.contextmanager
    def _seams_off(self) -> Iterator[None]:
        seams, self._layer_seams = self._layer_seams, {}
        try:
            yield
        finally:
            self._layer_seams = seams
