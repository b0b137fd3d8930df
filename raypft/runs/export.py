"""A finished run as a folder that others load: what was trained, and a model card.

What a method did to the backbone says what is written: peft's layers become an adapter of peft; changed weights a model
folder of transformers; what a method has beside the backbone parts.safetensors and config.json, in the subfolder
`method` where the folder is a model's. A trained head goes where transformers or peft have it, else to the parts.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from raypft import hub
from raypft._version import __version__
from raypft.backbones.base import Backbone
from raypft.backbones.export import auto_class, injected, place_of, save_model, save_peft
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.report.table import mean_std
from raypft.runs.predict import Trained
from raypft.storage import check_writable, is_remote

PARTS = "parts.safetensors"
ISO = re.compile("[a-z]{2,3}")
"""Codes of languages that the hub's cards take."""


def push(trained: Trained, name: str, folder: Path | None = None) -> str:
    """Write a seed's model and its card to a new, private repository of the hub; the address of its page.

    Args:
        name: OWNER/NAME; folder: where it is written on this machine, too.

    Raises:
        UserError: as `export` and `hub.upload`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch) / "model" if folder is None else folder
        export(trained, here, name)
        try:
            return hub.upload(here, name, f"{trained.job.recipe} on {trained.task.name}, raypft {__version__}")
        except UserError as error:
            written = "" if folder is None else f"; the model is in {folder}"
            raise UserError(f"{error}{written}") from None


@torch.no_grad()
def export(trained: Trained, folder: Path, pushed: str | None = None) -> None:
    """Write a seed's model and its card.

    Args:
        pushed: the hub's name for what is written, from which the card then loads it.

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
    code = loading(kind, auto_class(backbone, head), backbone, labels, pushed or folder)
    (folder / "README.md").write_text(card(trained, kind, code, held), encoding="utf-8")


def settings(trained: Trained) -> dict[str, Any]:
    """What the parts mean nothing without: backbone, method, readout, how rows are asked."""
    job = trained.job
    return {
        "raypft": __version__,
        "task": trained.task.name,
        "kind": trained.task.kind.name,
        "labels": trained.task.label.names,
        "backbone": {"name": base_name(trained), "revision": trained.result["backbone"]},
        "method": without_folders({"name": job.method["name"], **trained.learner.method.config.model_dump()}),
        "readout": without_folders({"name": job.readout["name"], **trained.learner.readout.config.model_dump()}),
        "pattern": trained.encoder.pattern.model_dump(),
        "max_tokens": job.train.max_tokens,
        **({"quantize": job.train.quantize} if job.train.quantize else {}),
    }


def base_name(trained: Trained) -> str:
    """The hub id of the backbone where it came from there, else its alias or the last part of its path."""
    backbone = trained.job.backbone
    return trained.learner.method.backbone.hub or (Path(backbone).name if Path(backbone).exists() else backbone)


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


def card(trained: Trained, kind: str, code: list[str], parts: dict[str, tuple[int, ...]]) -> str:
    """The model card, README.md.

    Args:
        kind: "model", "adapter" or "parts"; code: Python lines that load it; parts: file and name to shape.
    """
    job, task, result = trained.job, trained.task, trained.result
    base, on_hub = base_name(trained), trained.learner.method.backbone.hub is not None
    languages = job.train.languages
    held = ["", "Parts:", "", *(f"- `{name}` {list(shape)}" for name, shape in parts.items())] if parts else []
    sizes, settings = result["sizes"], job.train.model_dump(exclude={"languages"})
    training = [f"{key} {value}" for key, value in settings.items() if value is not None]
    return "\n".join(
        [
            "---",
            f"language: [{', '.join(json.dumps(language) for language in languages if ISO.fullmatch(language))}]",
            "license: unknown",
            *([f"base_model: {base}"] if on_hub else []),
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
            *code,
            "```",
            *held,
            "",
        ]
    )


LIBRARY = {"model": "transformers", "adapter": "peft", "parts": "raypft"}
COUNTED = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
"""The classes that must be told how many labels there are."""


def loading(kind: str, auto: str, backbone: Backbone, labels: list[str], place: Path | str) -> list[str]:
    """Python lines that load what was written without raypft, as they stand.

    Args:
        auto: the transformers class of the whole model; place: the folder that was written, or its name on the hub.
    """
    folder = f"FOLDER = {json.dumps(str(place.absolute()) if isinstance(place, Path) else place)}"
    if kind == "model":
        made = [f"model = {auto}.from_pretrained(FOLDER)", "tokenizer = AutoTokenizer.from_pretrained(FOLDER)"]
        return [f"from transformers import {auto}, AutoTokenizer", "", folder, *made]
    if kind == "adapter":
        base, revision = place_of(backbone)
        where = json.dumps(base) + (f', revision="{revision}"' if revision else "")
        count = f", num_labels={len(labels)}" if labels and auto in COUNTED else ""
        return [
            "from peft import PeftModel",
            f"from transformers import {auto}, AutoTokenizer",
            "",
            folder,
            *(
                [f"# trained on blocks in 4 bits ({backbone.quantized}), which this base is not"]
                if backbone.quantized
                else []
            ),
            f'base = {auto}.from_pretrained({where}, dtype="float32"{count})',
            "model = PeftModel.from_pretrained(base, FOLDER)",
            f"tokenizer = AutoTokenizer.from_pretrained({where})",
        ]
    fetched = [] if isinstance(place, Path) else ["from huggingface_hub import snapshot_download"]
    return [
        *fetched,
        "from safetensors.torch import load_file",
        "",
        f'FOLDER = snapshot_download("{place}")' if fetched else folder,
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
