"""A model whose training does not fit a worker: what each engine does where a worker may have 3.5 times the model's
bytes for itself.

    python benchmarks/limit.py [50M|120M]

RLIMIT_DATA is set in every worker before it opens the model's files; the kernel counts what is mapped for the process
alone, the pages of those files too. Training it in one process, or whole in each, takes five times the model's bytes:
those pages, values, gradients, two moments. One line an engine; under ZeRO-3 four workers train, leave after an epoch,
go on from their state and test, and one process exports what they trained, under the same limit.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memory import SIZES, Case, backbones_of, config_of, job_of, members, stepper_of, write_model

SMALL: dict[str, Any] = {
    "vocab_size": 4000,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
}
"""50 million parameters, few of them in the embedding."""
ALLOWED = 3.5
"""Times the bytes of the model's weights."""
UNTIL = 2
"""The epoch of three after which the workers leave."""


def limit(allowed: int) -> None:
    """Let this process have so many bytes more than it has."""
    found = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    most = 1024 * int(found[0]) + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def ran(case: Case, model: Path, runs: Path, **more: Any) -> bool:
    """Whether the workers of a case ended well.

    Args:
        more: `until`, `export`, see `member`.
    """
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    settings = {"case": asdict(case), "model": str(model), "runs": str(runs), "allowed": int(ALLOWED * size), **more}
    group = members(__file__, case.workers, settings)
    try:
        while any(member.poll() is None for member in group) and not any(member.poll() for member in group):
            time.sleep(0.1)
        return all(member.poll() == 0 for member in group)
    finally:
        for member in group:
            member.kill()
            member.wait()


def member(settings: dict[str, Any]) -> None:
    """One worker, which leaves when it hears of the epoch `until`; or the process that exports, where `export` says
    where to."""
    import torch  # noqa: PLC0415
    from torch import distributed  # noqa: PLC0415

    from raypft import export, load_trained  # noqa: PLC0415
    from raypft.runs.cell import run_cell  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415
    from raypft.runs.run import begun  # noqa: PLC0415
    from raypft.training.encode import encode_sample  # noqa: PLC0415

    torch.set_num_threads(1)
    case = Case(**settings["case"])
    train = {"epochs": UNTIL + 1, "lr": 1e-6, "batch_size": 4, "max_tokens": 48, "save_every": 1}
    prepared = prepare(job_of(case, settings["model"], settings["runs"], train=train))
    (cell,) = prepared.cells()
    assert cell.sample is not None
    if case.engine != "torch":
        import raypft.scale.deepspeed  # noqa: F401, PLC0415  (what is imported is not counted)
    if "export" in settings:
        with begun(prepared, fresh=False):  # what a run's folder says of it
            limit(settings["allowed"])
            export(load_trained(prepared.folder), Path(settings["export"]))
        return
    distributed.init_process_group("gloo")
    limit(settings["allowed"])
    backbone = backbones_of(prepared.job).of(cell)
    cell.folder.mkdir(parents=True, exist_ok=True)
    told = cell.folder / "told.jsonl"

    def tell(event: dict[str, Any]) -> None:
        if distributed.get_rank() == 0:
            with told.open("a") as file:
                file.write(json.dumps(event) + "\n")
        if event.get("epoch") == settings.get("until") and event["event"] == "epoch":
            leave()

    run_cell(cell, encode_sample(cell.resolved, backbone.text, cell.sample), backbone, stepper_of, tell)
    leave()


def leave() -> None:
    """End this worker when all have come here, without waiting for threads of DeepSpeed and Ray."""
    from torch import distributed  # noqa: PLC0415

    distributed.barrier()
    time.sleep(1)  # others may still read what this one sent
    os._exit(0)


def main() -> None:
    """Run every engine under the limit."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if sys.argv[1:2] == ["--member"]:
        member(json.loads(sys.argv[2]))
        return
    size = sys.argv[1] if len(sys.argv) > 1 else "50M"
    with tempfile.TemporaryDirectory(prefix="raypft-limit-") as folder:
        model = Path(folder) / "model"
        write_model(model, config_of(**SIZES.get(size, SMALL)), "fp32")
        for case in (Case(size, "fp32", "full", "torch", 1), Case(size, "fp32", "full", "zero0", 4)):
            print(case.name, "trained" if ran(case, model, Path(folder) / case.name) else "out of memory", flush=True)
        case, runs = Case(size, "fp32", "full", "zero3", 4), Path(folder) / "runs"
        legs: dict[str, dict[str, Any]] = {"left": {"until": UNTIL}, "gone on with and tested": {}}
        for done, more in legs.items():
            print(case.name, done if ran(case, model, runs, **more) else "failed", flush=True)
        exported = ran(Case(size, "fp32", "full", "zero3", 1), model, runs, export=f"{folder}/exported")
        print(case.name, "exported" if exported else "not exported", flush=True)


if __name__ == "__main__":
    main()
