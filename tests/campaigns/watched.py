"""A campaign whose cells a test lets begin and end, without Ray: what the driver and its trials would write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet

from raypft.campaigns.load import load_campaign
from raypft.campaigns.state import CampaignState, Configuration
from raypft.runs.results import recorder
from raypft.runs.scores import RowAnswer, Told, answer_table, measured
from raypft.storage import written

LANGUAGES = ("en", "de")


class Driven:
    """A campaign of a file, its configurations by label."""

    def __init__(self, path: str, **keys: str) -> None:
        self.campaign = load_campaign(path, keys)
        self.folder = self.campaign.folder
        self.state = CampaignState(self.campaign)
        self.state.write_campaign()
        self.configurations = dict[str, Configuration]()
        for table_cell in self.campaign.table_cells():
            self.configurations |= {one.label: one for one in self.state.tried(table_cell)}

    def begin(self, label: str, seed: int, *events: dict[str, Any]) -> Path:
        """A cell runs and tells events; its folder."""
        one = self.configurations[label]
        self.state.note(one, seed, "running", dev=None)
        tell = recorder(one.folder(seed))
        tell({"event": "start", "seed": seed, "epochs": 3, "trainable": 10, "workers": 1, "notes": []})
        for event in events:
            tell({"seed": seed, **event})
        return one.folder(seed)

    def end(self, label: str, seed: int, right: int, test: bool = True) -> None:
        """A cell is finished with so many of 20 rows right in each language."""
        one = self.configurations[label]
        task, folder = one.resolved.task, one.folder(seed)
        names = task.label.names
        rows = []
        for language in LANGUAGES:
            for number in range(20):
                gold, other = names[number % 2], names[(number + 1) % 2]
                answer = gold if number < right else other
                scores = [0.8 if name == answer else 0.2 / (len(names) - 1) for name in names]
                rows.append(RowAnswer(f"{language}/{number}", language, gold, answer, scores))
        result = {"seed": seed, "cell": one.keys[seed], "backbone": "weights", "manifest": f"rows of {seed}"}
        result |= {"sizes": {"train": 8, "dev": 4, "test": len(rows), "demos": 0}, "notes": [], "warnings": []}
        result |= {"test_rows": "test", "protocol": "fixed", **(measured(task, Told(rows)) if test else {})}
        history = [{"epoch": number, "loss": 1 / number, "dev": 50.0 + number} for number in (1, 2, 3)]
        result |= {"best_epoch": 3, "dev": 50.0 + right, "history": history, "losses": [], "train_seconds": 2.0}
        result |= {
            "trainable": 1234,
            "train_flops": 2e9,
            "seconds": 3.0,
            "cpu_seconds": 2.5,
            "peak_memory_mb": 700.0,
            "workers": 1,
        }
        folder.mkdir(parents=True, exist_ok=True)
        with written(folder / "predictions.parquet") as file:
            pa_parquet.write_table(answer_table(task, rows), file)
        if not (folder.parent / "job.yaml").is_file():
            (folder.parent / "job.yaml").write_text(one.job.dump())
        (folder / ("result.json" if test else "searched.json")).write_text(json.dumps(result, indent=1))
        self.state.note(one, seed, "finished", dev=result["dev"], tested=test, folder=str(folder))

    def fail(self, label: str, seed: int, reason: str) -> None:
        """A cell has failed."""
        self.state.note(self.configurations[label], seed, "failed", dev=None, reason=reason)
