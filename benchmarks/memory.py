"""What a worker holds: the private memory of each process that trains and tests a random Llama, beside a bound.

    python benchmarks/memory.py [--quick] [--only TEXT]

One line a case: NAME peak GB bound GB foreseen GB. A name says parameters, type, method, engine, workers. The peak is
the most that any worker had of pages of its own (RssAnon and RssShmem of /proc, looked at every few milliseconds from
outside): pages of the model's files, which the kernel shares between processes and takes back when it likes, are not in
it. The bound, of ZeRO-3: 1.35 x (16 bytes x trainable / workers + bytes of frozen / workers + the largest layer) + 0.8
GB; the other engines' lines have none. What is foreseen is what `raypft check` tells of such a worker. --quick: 20 M
parameters on 1 and 2 workers, under a minute. --only: names with a text.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever only looks on needs no torch
    from raypft.config.job import Job
    from raypft.config.resolved import ResolvedJob
    from raypft.runs.cell import Cell
    from raypft.runs.executor import LoadedBackbone
    from raypft.runs.memory import Counts
    from raypft.training.stepper import Learner, Stepper

SIZES: dict[str, dict[str, Any]] = {
    "20M": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4},
    "120M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12},
    "330M": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 22, "num_attention_heads": 16},
}
VOCABULARY = 32_000
FIXED = ("Review", "Sentiment", ":", "Negative", "Positive")
"""Words of the pattern, and those that answer."""
SOFT = "Review: {text}\nSentiment: <soft><slot>"
"""The pattern where tokens are soft."""
LOOK_SECONDS = 0.004
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Case:
    """A run: parameters (a key of SIZES), type of file and computation, method, "torch" or "zero0" to "zero3",
    workers, how the blocks' weights are held."""

    size: str
    precision: str
    method: str
    engine: str
    workers: int
    quantize: str | None = None

    @property
    def name(self) -> str:
        """What its line begins with."""
        held = f" {self.quantize}" if self.quantize else ""
        return f"{self.size} {self.precision} {self.method} {self.engine} x{self.workers}{held}"


def quick() -> list[Case]:
    """20 M parameters under ZeRO-3, on one worker and two."""
    return [Case("20M", "fp32", "full", "zero3", workers) for workers in (1, 2)]


def whole() -> Iterator[Case]:
    """ZeRO-3 at every size, type and number of workers; the other engines beside, where they fit most machines."""
    for size in SIZES:
        for precision in BYTES:
            for workers in (1, 2, 4):
                yield Case(size, precision, "full", "zero3", workers)
    for workers in (1, 4):
        yield Case("330M", "fp32", "lora", "zero3", workers)
    for workers in (1, 2, 4):
        yield Case("120M", "fp32", "lottery", "zero3", workers)
    for size, method in (("120M", "full"), ("330M", "lora")):
        yield Case(size, "fp32", method, "torch", 1)
        for stage in range(3):
            yield Case(size, "fp32", method, f"zero{stage}", 2)
    for quantize in (None, "nf4"):
        yield Case("120M", "fp32", "lora", "torch", 1, quantize)
        yield Case("120M", "bf16", "lora", "zero2", 2, quantize)


def config_of(**sizes: Any) -> Any:
    """The configuration of a Llama."""
    from transformers import LlamaConfig  # noqa: PLC0415

    common: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = LlamaConfig(tie_word_embeddings=True, **common | sizes)
    config.architectures = ["LlamaForCausalLM"]
    return config


def write_model(folder: Path, config: Any, precision: str) -> None:
    """A random Llama with a tokenizer of words, as transformers writes them."""
    import torch  # noqa: PLC0415
    from materials import lexicon, word_tokenizer  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    model.save_pretrained(folder, max_shard_size="400MB")
    words = [*FIXED, *lexicon(config.vocab_size)]
    word_tokenizer(list(dict.fromkeys(words))[: config.vocab_size - 6]).save_pretrained(folder)


def write_ticket(model: Path) -> None:
    """A ticket of random differences beside a model, and the task with a pattern for it."""
    import torch  # noqa: PLC0415
    import yaml  # noqa: PLC0415

    from raypft import tasks  # noqa: PLC0415
    from raypft.backbones.load import load_skeleton  # noqa: PLC0415
    from raypft.contract.cases import save_ticket  # noqa: PLC0415

    backbone = load_skeleton(str(model))
    body = dict(backbone.model.named_parameters())
    moved = {name: torch.randn(value.shape) for name, value in body.items() if name.startswith("model.")}
    save_ticket(ticket_of(str(model)), moved, backbone.revision, "decoupled", {})
    task = yaml.safe_load((Path(tasks.__path__[0]) / "sentiment.yaml").read_text())
    task["patterns"] = {"soft": {**task["patterns"]["gnnavi"], "text": SOFT}}
    ticket_of(str(model)).with_suffix(".yaml").write_text(yaml.safe_dump(task))


def ticket_of(model: str) -> Path:
    """Where a model's ticket lies."""
    return Path(f"{model}-ticket.safetensors")


def counts_of(job: ResolvedJob) -> Counts:
    """The parameters of a case's model with its method."""
    from raypft.runs.inspect import method_shape  # noqa: PLC0415
    from raypft.runs.memory import Counts  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415

    return Counts.of(method_shape(prepare(job)))


def bound(case: Case, counts: Counts) -> float | None:
    """Bytes that a worker may hold."""
    if case.engine != "zero3":
        return None
    each = 16 * counts.trainable + BYTES[case.precision] * (counts.everything - counts.trainable)
    return 1.35 * (each / case.workers + BYTES[case.precision] * counts.largest) + 0.8e9


def private(pid: int) -> int:
    """Bytes of pages that a process has for itself, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def members(script: str, workers: int, settings: dict[str, Any]) -> list[subprocess.Popen[bytes]]:
    """Processes that run a script's member with these settings, in a group of so many."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "DS_ACCELERATOR": "cpu", **os.environ}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(workers):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
        own = common | {key: str(value) for key, value in numbers.items()}
        command = [sys.executable, script, "--member", json.dumps(settings)]
        started.append(subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL))
    return started


def measured(case: Case, model: Path, scratch: Path, seeds: int = 1) -> tuple[int, list[dict[str, Any]]]:
    """The peak of a case, and what its workers told."""
    told = scratch / "told.jsonl"
    told.write_text("")
    places = {"model": str(model), "runs": str(scratch / "runs"), "told": str(told)}
    group = members(__file__, case.workers, {"case": asdict(case), "seeds": seeds, **places})
    peak = 0
    try:
        while any(member.poll() is None for member in group):
            peak = max(peak, *(private(member.pid) for member in group))
            if any(member.poll() for member in group):
                raise SystemExit(f"{case.name}: a worker failed")
            time.sleep(LOOK_SECONDS)
    finally:
        for member in group:
            member.kill()
            member.wait()
    return peak, [json.loads(line) for line in told.read_text().splitlines()]


def job_of(case: Case, model: str, runs: str, **more: Any) -> ResolvedJob:
    """The job of a case: four prompts an epoch, and as many tested."""
    from raypft import load_job  # noqa: PLC0415

    zero = case.engine.removeprefix("zero")
    values: dict[str, Any] = {
        "protocol": "fixed",
        "shots": 2,
        "seeds": 1,
        "test": {"languages": ["en"], "limit": 4},
        "zero": {"stage": int(zero) if zero.isdigit() else 0},
        "resources": {"workers": case.workers if zero.isdigit() else 0},
        "train": {
            "epochs": 2,
            "batch_size": 4,
            "max_tokens": 48,
            "precision": case.precision,
            "quantize": case.quantize,
        },
    }
    own: dict[str, Any] = {"task": "sentiment", "backbone": model, "method": case.method, "storage": runs}
    if case.method == "lottery":
        ticket = ticket_of(model)
        own |= {"task": str(ticket.with_suffix(".yaml")), "pattern": "soft", "demos": 0}
        own |= {"method": {"name": "lottery", "ticket": str(ticket)}}
    return load_job("fpft", **own, **values | more)


def stepper_of(cell: Cell, learner: Learner) -> Stepper:
    """The engine of a case's job."""
    from raypft.training.stepper import TorchStepper  # noqa: PLC0415

    if not cell.job.resources.workers:
        return TorchStepper(learner, cell.job.train, "cpu")
    from raypft.scale.deepspeed import DeepSpeedStepper  # noqa: PLC0415  (takes seconds to import)

    return DeepSpeedStepper(cell.job, learner, "cpu")


def backbones_of(job: Job) -> LoadedBackbone:
    """How a worker of a job loads its model."""
    from raypft.runs.executor import LoadedBackbone  # noqa: PLC0415

    return LoadedBackbone(job.resources.workers > 0 and (job.zero.stage == 3 or job.train.precision != "fp32"))


def member(settings: dict[str, Any]) -> None:
    """One worker of a case: the seeds of a job, one after the other, as a worker group runs them."""
    from torch import distributed  # noqa: PLC0415

    from raypft.runs.cell import run_cell  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415
    from raypft.training.encode import encode_sample  # noqa: PLC0415

    case = Case(**settings["case"])
    prepared = prepare(job_of(case, settings["model"], settings["runs"], seeds=settings["seeds"]))
    distributed.init_process_group("gloo")
    backbones, ended = backbones_of(prepared.job), time.perf_counter()

    def engine(cell: Cell, learner: Learner) -> Stepper:
        stepper = stepper_of(cell, learner)
        step = stepper.step

        def told(lr: float) -> Any:
            done = step(lr)
            vars(stepper).pop("step")
            tell(case=case.name, seed=cell.seed, until_first_step=time.perf_counter() - ended)
            return done

        vars(stepper)["step"] = told
        steppers.append(stepper)
        return stepper

    def tell(**facts: Any) -> None:
        if distributed.get_rank() == 0:
            with Path(settings["told"]).open("a") as file:
                file.write(json.dumps(facts) + "\n")

    for cell in prepared.cells():
        steppers: list[Stepper] = []
        backbone = backbones.of(cell)
        cell.folder.mkdir(parents=True, exist_ok=True)
        assert cell.sample is not None
        result = run_cell(cell, encode_sample(cell.resolved, backbone.text, cell.sample), backbone, engine)
        steppers.pop().close()
        del backbone
        tell(case=case.name, seed=cell.seed, loss=result["losses"][-1], first=result["losses"][0], mean=result["mean"])
        ended = time.perf_counter()
    distributed.barrier()
    distributed.destroy_process_group()


def main() -> None:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=1, help="cells a worker runs; what they told is printed")
    parser.add_argument("--member", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed says a line where it has to look for one
    if asked.member:
        member(json.loads(asked.member))
        return
    from raypft.runs.memory import foreseen  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="raypft-memory-") as folder:
        for case in quick() if asked.quick else whole():
            if asked.only not in case.name:
                continue
            model = Path(folder) / f"{case.size}-{case.precision}"
            if not model.is_dir():
                write_model(model, config_of(**SIZES[case.size]), case.precision)
            if case.method == "lottery" and not ticket_of(str(model)).is_file():
                write_ticket(model)
            scratch = Path(folder) / case.name
            scratch.mkdir()
            peak, told = measured(case, model, scratch, asked.seeds)
            job = job_of(case, str(model), str(scratch))
            counts = counts_of(job)
            allowed, expected = bound(case, counts), foreseen(job.job, counts).peak
            end = "" if allowed is None else f" bound {allowed / 1e9:.2f} GB"
            print(f"{case.name} peak {peak / 1e9:.2f} GB{end} foreseen {expected / 1e9:.2f} GB", flush=True)
            for line in told if asked.seeds > 1 else []:
                print(f"    {line}", flush=True)


if __name__ == "__main__":
    main()
