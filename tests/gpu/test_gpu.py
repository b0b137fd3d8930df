"""On a GPU as on a CPU: every method's epoch, the cache, answers of a saved run, bf16, and a Ray worker with NCCL. All
is skipped where there is no CUDA."""

from __future__ import annotations

import json
import math
import traceback
import warnings
from typing import Any

import pytest
import torch
from test_cli import call, place, words  # noqa: F401  (a fixture)

from raypft.config.job import Job
from raypft.contract import cases, tiny
from raypft.contract.checks import dataset
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.runs.cell import loaders
from raypft.training.kept import copied
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate, fit
from raypft.training.stepper import MOMENTS, VALUE, TorchStepper

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")]
PAIRS = [pair for pair in cases.supported() if METHODS.load(pair[0]).trains]
EPOCH = cases.SETTINGS.model_copy(update={"epochs": 1})


@pytest.fixture(autouse=True)
def exact_products():
    """Products of fp32 as the CPU makes them, those of cuDNN's LSTM too."""
    parts: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn]
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"
    yield
    for part, precision in zip(parts, before, strict=True):
        part.fp32_precision = precision


def trained(method: str, kind: str, device: str, settings=EPOCH, dropout: float = 0.0):
    """A stepper behind its training, the losses, and the answers to its rows."""
    cell = cases.cell(method, tiny.backbone(kind, dropout=dropout))
    stepper, rows = TorchStepper(cell.learner, settings, device), dataset(cell)
    state = fit(stepper, rows, rows, settings, 0, cell.score)
    return stepper, state.losses, evaluate(stepper, rows, settings)


@pytest.mark.parametrize(("method", "kind"), PAIRS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_epoch_is_that_of_a_cpu(method, kind, dropout):
    here, losses, answers = trained(method, kind, "cuda", dropout=dropout)
    there, expected, right = trained(method, kind, "cpu", dropout=dropout)
    assert losses == pytest.approx(expected, rel=1e-4)
    for answer, own in zip(answers, right, strict=True):
        assert answer.scores == pytest.approx(own.scores, abs=1e-4)
    values = there.values()
    for name, value in here.values().items():
        assert value.device.type == "cpu"
        # Adam's first steps are the rate's size even where a gradient is nothing but rounding
        assert torch.allclose(value, values[name], atol=4 * EPOCH.lr), name


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_half_precision_stays_finite(method, kind):
    settings = cases.SETTINGS.model_copy(update={"precision": "bf16"})
    _, losses, answers = trained(method, kind, "cuda", settings)
    assert all(map(math.isfinite, losses))
    assert all(map(math.isfinite, [score for answer in answers for score in answer.scores]))


@pytest.mark.parametrize("kind", tiny.FAMILIES["causal"])
def test_the_cache_gives_the_same_numbers(kind):
    curves = []
    for cached in (True, False):
        cell = cases.cell("gnnavi", tiny.backbone(kind))
        stepper, rows = TorchStepper(cell.learner, cases.SETTINGS, "cuda"), dataset(cell)
        train, dev = rows, rows
        if cached:
            job = Job(task="t", pattern="p", backbone="b", method={"name": "gnnavi"}, train=cases.SETTINGS)
            prompts = {"train": cell.prompts, "dev": cell.prompts}
            train, dev = loaders(job, cell.learner, stepper, prompts, None)
            assert isinstance(train, PromptDataset)
            assert train.lower is not None
        state = fit(stepper, train, dev, cases.SETTINGS, 0, cell.score)
        curves.append((state.losses, [record["dev"] for record in state.history]))
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-5)
    assert curves[0][1] == curves[1][1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_training_goes_on_from_its_state(method):
    """Adam's state, saved in CPU memory, is put back where a fused Adam counts."""
    whole = trained(method, "gpt2", "cuda", EPOCH.model_copy(update={"epochs": 2}))[1]
    cell = cases.cell(method, tiny.backbone("gpt2"))
    stepper, rows = TorchStepper(cell.learner, EPOCH, "cuda"), dataset(cell)
    state = fit(stepper, rows, None, EPOCH, 0, cell.score)
    kept, steps = copied(stepper.held(), (VALUE, *MOMENTS)), {name: own.step for name, own in stepper.held().items()}
    again = TorchStepper(cell.learner, EPOCH, "cuda")
    again.put(kept.give, steps)
    settings = EPOCH.model_copy(update={"epochs": 2})
    assert fit(again, rows, None, settings, 0, cell.score, state).losses == pytest.approx(whole, rel=1e-5)


def test_a_gradient_that_is_not_finite_ends_the_training_in_the_line_of_a_cpu():
    """It is read behind the next step, which must not move what is trained."""
    cell = cases.cell("full", tiny.backbone("gpt2"))
    stepper, factors = TorchStepper(cell.learner, EPOCH, "cuda"), iter([1.0, math.nan])
    next(iter(stepper.parameters.values())).register_hook(lambda gradient: gradient * next(factors, 1.0))
    settings, after = EPOCH.model_copy(update={"batch_size": 1}), list[dict[str, torch.Tensor]]()
    step = stepper.step

    def noted(lr):
        told = step(lr)
        after.append(stepper.values())
        return told

    stepper.step = noted
    with pytest.raises(UserError, match=r"^train: the gradient is not finite at optimizer step 2; lower train.lr"):
        fit(stepper, dataset(cell), None, settings, 0, cell.score)
    assert len(after) == 3
    assert all(torch.equal(value, after[0][name]) for values in after[1:] for name, value in values.items())


@pytest.mark.parametrize(("method", "kind"), [("full", "gpt2"), ("full", "bert"), ("lora", "gpt2")])
def test_no_line_of_the_loop_waits_for_the_gpu_in_a_step(method, kind):
    """But for the last of an epoch; what a model's own code waits for is its own."""
    cell = cases.cell(method, tiny.backbone(kind, dropout=0.1))
    settings = EPOCH.model_copy(update={"batch_size": 1, "select": "last"})
    stepper = TorchStepper(cell.learner, settings, "cuda")
    step, lines = stepper.step, list[str]()

    def watched(lr):
        torch.cuda.set_sync_debug_mode("warn")
        return step(lr)

    def told(message, category, filename, lineno, file=None, line=None):
        own = [frame for frame in traceback.extract_stack()[:-1] if "site-packages/torch" not in frame.filename]
        last = [frame for frame in own if frame.name not in ("__torch_function__", "_showwarnmsg")][-1]
        if "synchronizing" in str(message) and "/raypft/training/" in last.filename:
            lines.append(f"{last.filename}:{last.lineno}")

    stepper.step = watched
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = told
        try:
            fit(stepper, dataset(cell), None, settings, 0, cell.score)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert lines == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_says_what_memory_it_took_and_answers_again(place, monkeypatch, workers):  # noqa: F811
    """In this process, and on a Ray worker, whose collectives are NCCL's; then `predict` with what was saved."""
    own = words(place, "seeds=1", f"resources.workers={workers}", f"resources.gpus_per_worker={workers}")
    assert call(monkeypatch, "run", *own) == 0
    (path,) = (place / "runs").glob("*/seed-0/result.json")
    result = json.loads(path.read_text())
    assert result["peak_gpu_memory_mb"] > 0
    assert all(map(math.isfinite, result["losses"]))
    out = place / "answers.jsonl"
    assert call(monkeypatch, "predict", str(path.parent.parent), f"--data={place}/test.parquet", f"--out={out}") == 0
    assert out.read_text().count("\n") == 32
