"""Blocks in 4 bits compute what the same blocks compute on weights that were rounded beforehand, for every method that
leaves them as they are; the others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from raypft.backbones.four_bit import FourBit, check_package, layers, quantize
from raypft.backbones.frozen_states import FrozenStates
from raypft.backbones.load import FAMILIES, load_again, load_backbone, load_skeleton
from raypft.backbones.text_load import TEXTS, family_of
from raypft.contract import cases, checks, tiny
from raypft.contract.group import Case, run_case, run_group
from raypft.errors import UserError
from raypft.methods import METHODS

bitsandbytes = pytest.importorskip("bitsandbytes")

PAIRS = [
    *(
        (method, kind)
        for method in ("lora", "ia3", "prefix", "soft_prompt", "frozen")
        for kind in ("bert", "gpt2", "llama", "t5")
    ),
    *((method, kind) for method in ("adapter", "gnnavi") for kind in ("gpt2", "llama")),
    ("adapter", "bert"),
]
OPTIONS: dict[str, Any] = {"soft_prompt": {"train_backbone": False}}
PROMISES: list[Callable[..., None]] = [
    checks.exactly_the_declared_parameters_move,
    checks.saved_parameters_give_equal_scores,
    checks.cells_a_b_a_give_equal_bits,
    checks.bf16_stays_finite,
    checks.micro_batches_do_not_change_the_losses,
    checks.shortcuts_do_not_change_the_losses,
    checks.checkpointing_does_not_change_the_losses,
]


def nearest(weight: Tensor) -> Tensor:
    """A weight [O, I] whose entries are the nearest of 16 values times the largest magnitude of their 64."""
    values = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    blocks = functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    chosen = ((blocks / scales).unsqueeze(-1) - values).abs().argmin(-1)
    return (values[chosen] * scales).flatten()[: weight.numel()].view_as(weight)


def rounded(model: nn.Module) -> None:
    """Give the linear layers of the blocks the weights that they have in 4 bits."""
    for name, layer in model.named_modules():
        if type(layer) not in (nn.Linear, Conv1D) or not any(part.isdigit() for part in name.split(".")):
            continue
        weight = layer.get_parameter("weight").detach()
        layer.weight.data = nearest(weight.t()).t().contiguous() if isinstance(layer, Conv1D) else nearest(weight)


@pytest.fixture
def made_by(monkeypatch):
    """Lets tiny models be changed before they become backbones."""

    def let(change: Callable[[nn.Module], None]) -> None:
        def from_config(config: Any, tokenizer: Any) -> Any:
            family = family_of(config)
            model = FAMILIES[family].auto.from_config(config, dtype=torch.float32)
            change(model)
            return FAMILIES[family].backbone(model, TEXTS[family](tokenizer, config)).eval()

        monkeypatch.setattr(tiny, "backbone_from_config", from_config)

    return let


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_losses_and_scores_are_those_of_rounded_weights(made_by, method, kind):
    losses, scores = [], []
    for change in (quantize, rounded):
        made_by(change)
        cell = cases.cell(method, tiny.backbone(kind), **OPTIONS.get(method, {}))
        if METHODS.load(method).trains:
            losses.append(checks.trained(cell)[1].losses)
        with torch.no_grad():
            scores.append(cell.learner(checks.dataset(cell).batch(range(5))))
    assert losses == [] or losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize(("method", "kind"), [("lora", "bert"), ("ia3", "gpt2"), ("prefix", "llama")])
def test_what_a_method_promises_holds_in_four_bits(made_by, promise, method, kind):
    made_by(quantize)
    promise(method, kind)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_kept_states_and_a_shared_beginning_give_equal_numbers(made_by, kind):
    made_by(quantize)
    checks.cached_states_give_the_uncached_numbers("gnnavi", kind)
    checks.a_shared_beginning_gives_equal_scores("lora", kind)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("full", "bert"), ("bitfit", "gpt2"), ("lottery", "gpt2"), ("ticket_search", "bert"), ("soft_prompt", "llama")],
)
def test_a_method_that_trains_the_model_is_refused(made_by, monkeypatch, method, kind):
    whole = tiny.backbone(kind)
    options: Any = {
        key: cases.ARTEFACTS[key](whole) for key in cases.ARTEFACTS if key in METHODS.load(method).Config.model_fields
    }
    made_by(quantize)
    with pytest.raises(UserError, match=r"^train\.quantize: found nf4 with a method that trains weights of the model"):
        cases.cell(method, tiny.backbone(kind), **options)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (16, 96), (10, 100), (33, 17), (3, 5), (64, 128)], ids=str)
def test_a_weight_of_any_shape_becomes_the_nearest_values(shape):
    """Also where blocks of 64 go on in the next row."""
    layer = nn.Linear(shape[1], shape[0])
    weight = layer.weight.detach().clone()
    quantize(nn.Sequential(nn.ModuleList([layer])))
    (held,) = layers(layer)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.testing.assert_close(held.unpacked(dtype), nearest(weight).to(dtype), rtol=0, atol=0)


@pytest.fixture(scope="module", params=["gpt2-fp32", "llama-bf16"])
def folder(request, tmp_path_factory):
    kind, dtype = request.param.split("-")
    place, made = tmp_path_factory.mktemp("model"), tiny.backbone(kind)
    model: Any = made.model
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]).save_pretrained(place)
    made.text.tokenizer.save_pretrained(place)
    return str(place)


def test_a_model_is_read_into_four_bits(folder):
    """With a skeleton of the same shapes; heads, embeddings, normalisations stay; another reading has the same bits."""
    backbone, skeleton = load_backbone(folder, quantized="nf4"), load_skeleton(folder, "nf4")
    stored = load_backbone(folder, as_stored=True, quantized="nf4")
    whole = load_backbone(folder)
    for other in (stored, load_again(stored.known)):
        assert other.quantized == "nf4"
        for one, again in zip(layers(backbone), layers(other), strict=True):
            assert torch.equal(one.codes, again.codes)
            assert torch.equal(one.scales, again.scales)
    assert [layer.shape for layer in layers(skeleton)] == [layer.shape for layer in layers(backbone)]
    assert [layer.nbytes for layer in layers(skeleton)] == [layer.nbytes for layer in layers(backbone)]
    left, before = dict(backbone.model.named_parameters()), dict(whole.model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in left.items())
    modules = dict(backbone.model.named_modules())
    gone = {name.rpartition(".")[0]: before[name] for name in before.keys() - left.keys()}
    assert {name for name, module in modules.items() if isinstance(module, FourBit)} == set(gone)
    for name, weight in gone.items():
        layer = modules[name]
        assert isinstance(layer, FourBit)
        torch.testing.assert_close(
            layer.unpacked(torch.float32), nearest(weight.t() if isinstance(layer, Conv1D) else weight)
        )
    held = sum(layer.nbytes for layer in layers(backbone))
    assert held == pytest.approx(4 * sum(weight.numel() for weight in gone.values()) / 7.1, rel=0.02)


def test_kept_states_say_that_they_are_of_four_bits(folder):
    made = [FrozenStates(load_backbone(folder, quantized=quantized))._made("cpu") for quantized in (None, "nf4")]
    assert made[1] == (*made[0], "nf4")


def test_a_cast_of_the_model_leaves_codes_and_scales(folder):
    """As DeepSpeed casts it: the weights are those of before, to the rounding of the type."""
    backbone = load_backbone(folder, quantized="nf4")
    before = [layer.weight for layer in layers(backbone)]
    model: Any = backbone.model
    model.to(torch.bfloat16)
    for layer, weight in zip(layers(backbone), before, strict=True):
        assert layer.weight.dtype == torch.bfloat16
        assert torch.equal(layer.weight, weight.to(torch.bfloat16))
        assert torch.equal(layer.unpacked(torch.float32).reshape(-1).sort()[0], weight.reshape(-1).sort()[0])


def test_no_weight_is_kept_for_the_backward_pass(folder):
    layer: Any = layers(load_backbone(folder, quantized="nf4"))[0]
    states, kept = torch.randn(3, layer.shape[1], requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda none: none):
        layer(states).sum().backward()
    assert kept == []
    torch.testing.assert_close(states.grad, layer.unpacked(torch.float32).sum(0).expand(3, -1))


@pytest.mark.parametrize("folder", ["gpt2-fp32"], indirect=True)
def test_steps_of_deepspeed_are_those_of_torch(folder):
    """Dropout and all; in bf16 the weights are cast, codes and scales are not."""
    whole = [Case("lora", "gpt2", engine, files=folder, quantized="nf4") for engine in ("torch", 0, 1, 2)]
    half = Case("lora", "gpt2", 2, "bf16", files=folder, quantized="nf4")
    found = run_group(1, [*whole, half])
    expected = found[0]["losses"]
    for case in found[1:4]:
        assert case["losses"] == pytest.approx(expected, rel=1e-5)
    assert found[4]["losses"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("folder", ["gpt2-fp32"], indirect=True)
def test_a_training_goes_on_from_its_state_to_the_same_bits(folder, tmp_path):
    def case(**more: Any) -> Any:
        return run_case(Case("lora", "gpt2", "torch", files=folder, quantized="nf4", **more))

    alone = case(epochs=4)
    case(epochs=2, keep=str(tmp_path))
    went_on = case(epochs=4, resume=str(tmp_path))
    assert went_on["losses"] == alone["losses"]
    assert all(torch.equal(value, alone["values"][name]) for name, value in went_on["values"].items())


def test_without_the_package_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes; pip install 'raypft\[quantize\]'"):
        check_package()


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(UserError, match=r"^train\.quantize: found nf4; the blocks of this model have no linear"):
        quantize(nn.Sequential(nn.ModuleList([nn.LayerNorm(3)])))
