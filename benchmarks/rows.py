"""What rows take, each line in processes of its own:

    OMP_NUM_THREADS=1 python benchmarks/rows.py [--quick] [--only LINE …] [--panx DATA MODEL]

--quick: a tenth of the rows. --panx: a folder with PAN-X's own rows (panx/train.parquet and test.parquet, as the task's
source "files" has them) and one with a masked model's tokenizer; else sentences as long are made up.

prepared: `prepare` of a job whose training rows lie in a Parquet file, 4 a class or all of them drawn; CPU-seconds, and
the most memory of its process.
encoded: PAN-X with ToPro's pattern, a prompt a word, on Ray; bytes of a prompt, and the memory by which each of two
workers grows that reads and collates its share of them.
asked: the memory by which the process grows that asks for rows to be encoded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import torch
from materials import piece_tokenizer, sentences, tagged_rows
from start_up import job
from transformers import BertConfig, BertForMaskedLM

from raypft.config.load import load_job
from raypft.contract import tiny
from raypft.methods import METHODS
from raypft.runs.prepare import prepare
from raypft.scale.data import encode_on_ray, encoded_folder, read_encoded
from raypft.scale.session import ray_session
from raypft.tasks.load import load_task
from raypft.training.loader import PromptDataset

PREPARED = (100_000, 1_000_000)
SENTENCES = 31_560
ASKED = (200_000, 2_000_000)
WORKERS = 2
LINES = ("prepared", "encoded", "asked")
ALL = ["shots=", "dev.rows=none"]
"""The words that draw all rows."""


def memory(name: str = "VmRSS") -> float:
    """MB that this process takes, mapped files included; VmHWM: the most since `grown_from`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def grown_from() -> float:
    """MB that this process takes now; the most begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory()


def of_choice(folder: Path, rows: int) -> list[str]:
    """The words of a job with so many rows of training, in a folder."""
    with job() as words:
        name, *overrides = words
        place = Path(next(word for word in overrides if word.startswith("data.root=")).partition("=")[2])
        for file in place.iterdir():
            file.rename(folder / file.name)
        pieces = [word.replace(str(place), str(folder)) for word in overrides]
    numbers = pa.array(range(rows)).cast(pa.string())
    made = {
        "id": pa.compute.binary_join_element_wise("train", numbers, "-"),  # type: ignore[attr-defined]
        "text": pa.compute.binary_join_element_wise("the film was fine", numbers, " "),  # type: ignore[attr-defined]
        "label": pa.array(["negative", "positive"]).take(pa.array(range(rows)).cast(pa.int64()).to_numpy() % 2),
    }
    pa_parquet.write_table(pa.table(made | {"language": pa.repeat("en", rows)}), folder / "train.parquet")
    return [name, *pieces]


def of_tags(folder: Path, rows: int) -> list[str]:
    """The words of a job of ToPro that tests so many sentences as long as PAN-X's, in a folder."""
    task, words = load_task("panx"), []
    for sentence in sentences(rows, 1, 50_000):
        words.append(list(map("".join, zip(sentence[::2], sentence[1::2], strict=False))))
    said = list(map(str, (task.pattern("topro").verbalizer or {}).values()))
    tokenizer = piece_tokenizer([" ".join(sentence) for sentence in words[:2000]], said)
    size: dict[str, Any] = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertForMaskedLM(BertConfig(vocab_size=4000, max_position_embeddings=128, **size)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split, some in (("train", words[:8]), ("test", words)):
        (folder / "panx").mkdir(exist_ok=True)
        table = pa.Table.from_pylist([{**row, "tags": row["label"]} for row in tagged_rows(some, task.label.names)])
        pa_parquet.write_table(table.drop_columns("label"), folder / "panx" / f"{split}.parquet")
    return of_panx(folder, folder / "model", folder)


def of_panx(data: Path, model: Path, folder: Path) -> list[str]:
    """The words of a job of ToPro that tests the rows of PAN-X below `data`; it may write into `folder`."""
    keys = {"task": "panx", "backbone": model, "data.root": data, "data.source": "files", "seeds": 1}
    keys |= {"storage": folder / "runs", "dev.rows": "none", "resources.workers": WORKERS}
    return ["topro", *(f"{key}={value}" for key, value in keys.items())]


def prepared(words: list[str]) -> dict[str, float]:
    """CPU-seconds and MB of `prepare`."""
    loaded = load_job(words[0], words[1:])
    began = time.process_time()
    prepare(loaded)
    return {"CPU-s": time.process_time() - began, "MB at most": memory("VmHWM")}


def encoded(words: list[str]) -> dict[str, Any]:
    """Encodes the rows of a job on Ray; where they are, and MB by which this process grew."""
    ready = prepare(load_job(words[0], words[1:]))
    (cell,) = ready.cells()
    with ray_session():
        before, began = grown_from(), time.perf_counter()
        encode_on_ray([cell])
        grown, seconds = memory("VmHWM") - before, time.perf_counter() - began
    folder = encoded_folder(cell)
    sizes = sum(file.stat().st_size for file in folder.iterdir())
    return {"MB": grown, "seconds": seconds, "bytes": sizes, "folder": str(folder)}


def read(folder: str, rank: str) -> dict[str, Any]:
    """MB by which a worker grows that maps encoded test rows and makes the batches that it answers."""
    method = METHODS.load("frozen")(METHODS.load("frozen").Config(), tiny.backbone("bert"))
    before = grown_from()
    rows = PromptDataset(read_encoded(Path(folder))["test"], method, 0)
    tokens = int(rows.prompts.lengths.sum())
    for some in rows.stretches():
        own = rows.distinct(True, some)[int(rank) :: WORKERS]
        for start in range(0, len(own), 32):
            rows.batch(own[start : start + 32])
    return {"MB": memory("VmHWM") - before, "prompts": len(rows), "tokens": tokens}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {"prepared": prepared, "encoded": encoded, "read": read}


def started(step: str, *told: Any) -> subprocess.Popen:
    """A step in a process of its own."""
    words = [json.dumps(one) for one in told]
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    return subprocess.Popen(
        [sys.executable, __file__, step, *words], stdout=subprocess.PIPE, text=True, env=environment
    )


def result(process: subprocess.Popen) -> dict[str, Any]:
    """What a step printed last."""
    out = process.communicate()[0]
    if process.returncode:
        raise SystemExit("rows: a step failed; see above")
    return json.loads(out.splitlines()[-1])


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 2 and sys.argv[1] in STEPS:
        print(json.dumps(STEPS[sys.argv[1]](*map(json.loads, sys.argv[2:]))))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--only", nargs="+", choices=LINES, default=LINES)
    parser.add_argument("--panx", nargs=2, type=Path, metavar=("DATA", "MODEL"))
    options = parser.parse_args()
    share = 10 if options.quick else 1
    with ExitStack() as stack:

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rp-")))

        for rows in PREPARED if "prepared" in options.only else ():
            words = of_choice(folder(), rows // share)
            for drawn, more in (("4 a class drawn", []), ("all of them drawn", ALL)):
                found = result(started("prepared", [*words, *more]))
                print(
                    f"prepared {rows // share:,} rows, {drawn}: {found['CPU-s']:.1f} CPU-s, "
                    f"{found['MB at most']:.0f} MB",
                    flush=True,
                )
        if "encoded" in options.only:
            if options.panx is None:
                words = of_tags(folder(), SENTENCES // share)
            else:
                data, model = options.panx
                words = of_panx(data, model, folder())
            told = result(started("encoded", words))
            readers = [started("read", told["folder"], str(rank)) for rank in range(WORKERS)]
            read_by = [result(reader) for reader in readers]
            count, tokens = read_by[0]["prompts"], read_by[0]["tokens"]
            grown = " and ".join(f"{one['MB']:.0f}" for one in read_by)
            print(
                f"encoded {count:,} prompts of {tokens / count:.1f} tokens: "
                f"{told['bytes'] / count:.0f} bytes a prompt on disk, {told['seconds']:.0f} s; "
                f"workers that read their shares grow by {grown} MB",
                flush=True,
            )
        for rows in ASKED if "asked" in options.only else ():
            words = ["direct", *of_choice(folder(), rows // share)[1:], *ALL, f"resources.workers={WORKERS}"]
            told = result(started("encoded", words))
            print(
                f"the process that asks for {rows // share:,} rows grows by {told['MB']:.0f} MB while they are encoded "
                f"({told['seconds']:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
