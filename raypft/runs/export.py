"""A finished run as a folder that others load: what was trained, and a model card.

What a method did to the backbone says what is written: peft's layers become an adapter of peft; changed weights a model
folder of transformers; what a method has beside the backbone parts.safetensors and config.json, in the subfolder
`method` where the folder is a model's. A trained head goes where transformers or peft have it, else to the parts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from raypft._version import __version__
from raypft.backbones.aliases import ALIASES
from raypft.backbones.export import auto_class, injected, save_model, save_peft
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.report.table import mean_std
from raypft.runs.predict import Trained
from raypft.storage import check_writable, is_remote

PARTS = "parts.safetensors"


@torch.no_grad()
def export(trained: Trained, folder: Path) -> None:
    """Write a seed's model and its card.

    Raises:
        UserError: nothing was trained, or the folder holds something.
    """
    learner, labels = trained.learner, trained.task.label.names
    method, backbone, head = learner.method, learner.method.backbone, learner.readout.exported_head()
    if not (method.trains and trained.job.train.epochs and learner.trainable()):
        raise UserError(
            f"export: nothing was trained in {trained.folder}; use the backbone {trained.job.backbone} itself"
        )
    if is_remote(folder):
        raise UserError(f"export: found {folder}; expected a new folder on this machine, which others then load from")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export: {folder} holds something already; give a new folder")
    check_writable(folder, "export")
    parts = dict(method.parts())
    if injected(backbone):
        kind = "adapter"
        save_peft(backbone, folder, head, labels)
    elif method.backbone_moves:
        kind = "model"
        save_model(backbone, folder, head, labels)
    else:
        kind = "parts"
    if kind == "parts" or head is None:
        parts |= {name: p for name, p in learner.kept().items() if name.startswith("readout.")}
    place = folder if kind == "parts" else folder / "method"
    if parts:
        place.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in parts.items()}, place / PARTS)
        (place / "config.json").write_text(
            json.dumps(settings(trained), indent=1, ensure_ascii=False), encoding="utf-8"
        )
    held = {f"{(place / PARTS).relative_to(folder)}: {name}": tuple(value.shape) for name, value in parts.items()}
    (folder / "README.md").write_text(card(trained, kind, auto_class(backbone, head), held), encoding="utf-8")


def settings(trained: Trained) -> dict[str, Any]:
    """What the parts mean nothing without: backbone, method, readout, how rows are asked."""
    job = trained.job
    return {
        "raypft": __version__,
        "task": trained.task.name,
        "kind": trained.task.kind.name,
        "labels": trained.task.label.names,
        "backbone": {"name": base_name(job.backbone), "revision": trained.result["backbone"]},
        "method": without_folders({"name": job.method["name"], **trained.learner.method.config.model_dump()}),
        "readout": without_folders({"name": job.readout["name"], **trained.learner.readout.config.model_dump()}),
        "pattern": trained.encoder.pattern.model_dump(),
        "max_tokens": job.train.max_tokens,
    }


def base_name(backbone: str) -> str:
    """The hub id of an alias, the last part of a local path, else the name."""
    if backbone in ALIASES:
        return ALIASES[backbone].hub
    return Path(backbone).name if Path(backbone).exists() else backbone


def without_folders(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose paths are their last parts: where something lay here means nothing elsewhere."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).exists() else value
        for key, value in values.items()
    }


def asked(trained: Trained) -> list[str]:
    """How the model was asked: pattern, label words, demonstrations."""
    job, pattern = trained.job, trained.encoder.pattern
    source = f" ({pattern.source})" if pattern.source else ""
    lines = [f"- pattern `{job.pattern}`: `{json.dumps(pattern.text, ensure_ascii=False)}`{source}"]
    if pattern.verbalizer:
        lines.append(
            f"- label words ({pattern.mode}): "
            + ", ".join(f"{name} = {words}" for name, words in pattern.verbalizer.items())
        )
    if pattern.by_language:
        lines.append(f"- other wordings for {', '.join(pattern.by_language)}: see the task's YAML")
    if job.demos:
        lines.append(f"- {job.demos} demonstrations a class before every row: demos.parquet of the run")
    return lines


def card(trained: Trained, kind: str, auto: str, parts: dict[str, tuple[int, ...]]) -> str:
    """The model card, README.md.

    Args:
        kind: "model", "adapter" or "parts"; auto: the transformers class of the whole model; parts: file and name to
        shape.
    """
    job, task, result = trained.job, trained.task, trained.result
    base = base_name(job.backbone)
    languages = job.train.languages
    held = ["", "Parts:", "", *(f"- `{name}` {list(shape)}" for name, shape in parts.items())] if parts else []
    sizes, settings = result["sizes"], job.train.model_dump(exclude={"languages"})
    training = [f"{key} {value}" for key, value in settings.items() if value is not None]
    return "\n".join(
        [
            "---",
            f"language: [{', '.join(json.dumps(language) for language in languages)}]",
            "license: unknown",
            *([f"base_model: {base}"] if "/" in base else []),
            f"library_name: {LIBRARY[kind]}",
            f"tags: [raypft, {METHODS.label(job.method['name'])}]",
            "---",
            "",
            f"# {job.recipe} on {task.name}",
            "",
            f"{base}, trained on {task.name}{f' ({task.about})' if task.about else ''} with raypft {__version__}.",
            "",
            f"- task: {task.name}, kind {task.kind.name}"
            + (f", labels {', '.join(task.label.names)}" if task.label.names else ""),
            f"- languages: trained on {', '.join(languages)}; tested on {', '.join(result['scores'])}",
            f"- metric: {result['metric']}",
            *asked(trained),
            "",
            "## Results",
            "",
            *results_table(trained),
            "",
            "## Training",
            "",
            f"- recipe {job.recipe}" + (f": {job.source}" if job.source else ""),
            f"- method {without_folders(job.method)}, {result['trainable']:,} trainable parameters; "
            f"readout {without_folders(job.readout)}",
            f"- protocol {job.protocol}, shots {job.shots or 'all'}: "
            f"{sizes['train']} train and {sizes['dev']} dev rows; seed {trained.seed}",
            f"- {', '.join(training)}; epoch {result['best_epoch']} kept",
            f"- base model revision {result['backbone']}, rows {result['manifest']}, cell {result['cell']}",
            "",
            "## Licence",
            "",
            "Unknown: none was stated. The licences of the base model and of the data apply.",
            "",
            "## Loading",
            "",
            "```python",
            *loading(kind, auto, base, task.label.names if auto in COUNTED else []),
            "```",
            *held,
            "",
        ]
    )


LIBRARY = {"model": "transformers", "adapter": "peft", "parts": "raypft"}
COUNTED = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
"""The classes that must be told how many labels there are."""


def loading(kind: str, auto: str, base: str, labels: list[str]) -> list[str]:
    """Python lines that load the folder without raypft."""
    if kind == "model":
        made = [f"model = {auto}.from_pretrained(FOLDER)", "tokenizer = AutoTokenizer.from_pretrained(FOLDER)"]
        return [f"from transformers import {auto}, AutoTokenizer", "", *made]
    if kind == "adapter":
        count = f", num_labels={len(labels)}" if labels else ""
        return [
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f'model = PeftModel.from_pretrained({auto}.from_pretrained("{base}"{count}), FOLDER)',
        ]
    return [
        "from safetensors.torch import load_file",
        "",
        f'parts = load_file(f"{{FOLDER}}/{PARTS}")  # config.json says what they are for',
    ]


def results_table(trained: Trained) -> list[str]:
    """Markdown lines: the primary metric per language, of this seed, over all seeds, and of the majority class."""
    seeds = [result["seed"] for result in trained.results]
    rows = [
        f"| language | seed {trained.seed} | seeds {', '.join(map(str, seeds))} | largest class | test rows |",
        "|---|---|---|---|---|",
    ]
    own = trained.result
    for language, score in own["scores"].items():
        over = mean_std([result["scores"][language] for result in trained.results if language in result["scores"]])
        majority = own["majority"].get(language)
        largest = "" if majority is None else f"{majority:.1f}"
        rows.append(f"| {language} | {score:.1f} | {over} | {largest} | {own['rows'][language]} |")
    rows.append(f"| mean | {own['mean']:.1f} | {mean_std([result['mean'] for result in trained.results])} | | |")
    return [*rows, "", "Mean ± sample standard deviation over seeds."]
