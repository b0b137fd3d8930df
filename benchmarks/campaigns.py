"""What campaigns cost beside training, on a tiny random model and the bundled reviews.

python benchmarks/campaigns.py lanes     24 trials of 2 seeds on a ZeRO-1 worker, with lanes and with a group a trial
python benchmarks/campaigns.py trials    the bookkeeping of 200 trials without workers
python benchmarks/campaigns.py ledger    100,000 finished cells: opening, planning, the table
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

from raypft.campaigns.campaign import Campaign
from raypft.campaigns.load import load_campaign
from raypft.campaigns.state import CampaignState
from raypft.report.campaign import write_tables
from raypft.scale.session import ray_session
from raypft.scale.tune.run import run_campaign


def model(folder: Path) -> str:
    """A random BERT of two layers whose words are those of the bundled reviews and their prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: PLC0415
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast  # noqa: PLC0415

    import raypft  # noqa: PLC0415

    sample = Path(raypft.__file__).parent / "data" / "samples" / "sentiment"
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    texts = [
        path.read_text() for path in (*sorted(sample.glob("*.jsonl")), sample.parents[2] / "tasks" / "sentiment.yaml")
    ]
    words = sorted({word for word, _ in itertools.chain.from_iterable(map(split.pre_tokenize_str, texts))})
    inner = Tokenizer(
        models.WordLevel(
            {token: i for i, token in enumerate(["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *words])},
            unk_token="[UNK]",
        )
    )
    inner.pre_tokenizer = split
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    special = {
        "cls_token": "[CLS]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder / "model")
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    BertForMaskedLM(BertConfig(vocab_size=inner.get_vocab_size(), pad_token_id=1, **size)).save_pretrained(
        folder / "model"
    )
    return str(folder / "model")


def campaign(folder: Path, name: str, trials: int, seeds: int, **more: Any) -> Campaign:
    """A search over the learning rate."""
    rates = [round(1e-4 * 1.03**number, 9) for number in range(trials)]
    settings: dict[str, Any] = {
        "backbone": str(folder / "model"),
        "storage": str(folder / name),
        "protocol": "fixed",
        "shots": 4,
        "seeds": list(range(seeds)),
        "test.languages": ["en"],
        "test.limit": 8,
        "dev": {"rows": "full", "limit": 8},
        "train": {"epochs": 1, "batch_size": 4, "max_tokens": 64},
    }
    file = {
        "about": "benchmark",
        "defaults": settings | more.pop("defaults", {}),
        "rows": {"ProFiT": {"recipe": "profit"}},
        "tasks": ["sentiment"],
        "search": {"space": {"train.lr": rates}},
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(file))
    return load_campaign(str(path))


def wall(what: Campaign) -> tuple[float, list[Any]]:
    """Seconds a campaign takes, and its numbers."""
    began = time.monotonic()
    rows = run_campaign(what, lambda event: None)
    cells = [
        [row["axes"], row["seed"], row["result"]["losses"], row["result"]["dev"], row["result"].get("mean")]
        for row in rows
    ]
    return time.monotonic() - began, cells


def beginnings(storage: Path) -> Iterator[tuple[str, int, float, float]]:
    """Run, seed, begin of training and end of every cell, in the order they ran."""
    cells = []
    for path in storage.glob("*/seed-*/events.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        start, *_ = [event["time"] for event in events if event["event"] == "start"]
        end, *_ = [event["time"] for event in events if event["event"] == "result"]
        cells.append((path.parts[-3], int(path.parts[-2].removeprefix("seed-")), start, end))
    return iter(sorted(cells, key=lambda cell: cell[2]))


def lanes(folder: Path) -> dict[str, Any]:
    """24 short trials, twice."""
    measured: dict[str, Any] = {}
    group = {"defaults": {"resources.workers": 1, "zero.stage": 1}}
    for name, switch in (("lanes", True), ("groups", False)):
        what = campaign(folder, name, 24, 2, lanes=switch, **group)
        began = time.time()
        measured[f"{name}: seconds"], measured[name] = wall(what)
        cells = list(beginnings(folder / name))
        measured[f"{name}: seconds to the first training"] = cells[0][2] - began
        waits: dict[str, list[float]] = {"trial": [], "seed": []}
        for (run, _, _, end), (next_run, _, start, _) in itertools.pairwise(cells):
            waits["seed" if run == next_run else "trial"].append(start - end)
        for kind, seconds in waits.items():
            measured[f"{name}: seconds from a cell's end to the next {kind}'s training, median and most"] = (
                statistics.median(seconds),
                max(seconds),
            )
    pairs = list(zip(measured.pop("lanes"), measured.pop("groups"), strict=True))
    measured["cells"], measured["cells with other numbers"] = len(pairs), sum(one != other for one, other in pairs)
    measured["ratio of seconds"] = measured["lanes: seconds"] / measured["groups: seconds"]
    return measured


def trials(folder: Path) -> dict[str, Any]:
    """200 trials without workers; what is not the cells' own time is bookkeeping."""
    what = campaign(folder, "trials", 200, 1, defaults={"resources.cpus_per_worker": 1})
    seconds, _ = wall(what)
    each = [json.loads(path.read_text())["seconds"] for path in (folder / "trials").glob("*/seed-*/searched.json")]
    return {
        "seconds": seconds,
        "trials": len(each) + 1,
        "a cell's own seconds, median": statistics.median(each),
        "seconds a trial": seconds / (len(each) + 1),
    }


def ledger(folder: Path) -> dict[str, Any]:
    """A campaign of 20,000 configurations of 5 seeds, each cell finished."""
    what = campaign(folder, "ledger", 20_000, 5)
    book = CampaignState(what)
    (place,) = what.table_cells()
    result = {
        "dev": 50.0,
        "metric": "accuracy@1",
        "scores": {"en": 50.0},
        "metrics": {"accuracy@1": {"en": 50.0}},
        "majority": {"en": 50.0},
        "rows": {"en": 8},
        "mean": 50.0,
        "test_rows": "0",
        "protocol": "fixed",
        "trainable": 1,
        "seconds": 1.0,
        "train_seconds": 1.0,
        "peak_memory_mb": 1.0,
    }
    with mock.patch("os.fsync"):  # nobody kills this one
        for number, configuration in enumerate(book.tried(place)):
            for seed, key in configuration.keys.items():
                cell_folder = folder / "ledger" / f"run-{number}" / f"seed-{seed}"
                cell_folder.mkdir(parents=True)
                (cell_folder / "result.json").write_text(json.dumps({"seed": seed, "cell": key, **result}))
                book.note(configuration, seed, "finished", dev=50.0, folder=str(cell_folder))
    began = time.monotonic()
    book = CampaignState(what)
    opened = time.monotonic()
    done = 0
    for configuration in book.tried(place):
        done += sum(book.where(configuration, seed, test=False) is not None for seed in configuration.keys)
    planned = time.monotonic()
    rows = book.rows()
    write_tables(what, rows, what.folder)
    read = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert done == len(rows) == 100_000
    return {
        "seconds to open": opened - began,
        "to plan": planned - opened,
        "for the table": read - planned,
        "peak memory, GiB": peak,
    }


def main() -> None:
    """Run one of them and print what it found."""
    kind = {"lanes": lanes, "trials": trials, "ledger": ledger}[sys.argv[1]]
    with tempfile.TemporaryDirectory(prefix="rp-", dir="/tmp") as name:
        model(Path(name))
        if kind is ledger:
            measured = kind(Path(name))
        else:
            with ray_session():
                measured = kind(Path(name))
    for key, value in measured.items():
        numbers = value if isinstance(value, tuple) else (value,)
        print(f"{key}: {', '.join(f'{n:.2f}' if isinstance(n, float) else str(n) for n in numbers)}")


if __name__ == "__main__":
    main()
