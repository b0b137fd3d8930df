"""What `check`, `show` and `list` print: jobs and rows looked at without training."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import torch

from raypft.backbones.aliases import ALIASES
from raypft.backbones.load import load_backbone
from raypft.backbones.text import PromptTokenizer
from raypft.batch import Encoded, collate
from raypft.config.compatibility import matrix
from raypft.config.job import Job, part_config, recipe_names, recipe_source
from raypft.errors import UserError, nearest
from raypft.methods import method_class, method_names
from raypft.readouts import readout_class, readout_names
from raypft.readouts.verbalizer import label_columns
from raypft.runs.cell import build_learner
from raypft.runs.run import Prepared
from raypft.tasks.prompts import readable
from raypft.tasks.task import load_task, task_names
from raypft.training.encode import Encoder, label_distribution, prompts_an_epoch

LOOKED_AT = 200
"""Rows whose prompts are counted and measured."""


def checked(prepared: Prepared) -> dict[str, Any]:
    """What is known of a prepared job: sizes, label words, parameters, steps."""
    job, skeleton = prepared.job, prepared.skeleton
    seed = job.seeds[0]
    sample, manifest = prepared.samples[seed], prepared.manifests[seed]
    encoder = Encoder.of(job, skeleton.text, sample.demos)
    lengths = sorted(len(prompt.ids) for row in sample.test.slice(0, LOOKED_AT).to_pylist() for prompt in encoder(row))
    prompts = round(prompts_an_epoch(sample, encoder, LOOKED_AT))
    steps = -(-prompts // job.train.batch_size) * job.train.epochs
    method, config = part_config(job.method, "method")
    with torch.device("meta"):
        made = method(config, skeleton)
    skeleton.reset()
    lines = [
        f"{job.recipe}: {job.task}, {job.backbone} ({skeleton.family}, {skeleton.num_layers} layers of {skeleton.hidden})",
        f"rows: {manifest['sizes']['train']} train, {manifest['sizes']['dev']} dev, {manifest['sizes']['test']} test, {manifest['sizes']['demos']} demonstrations (seed {seed}, manifest {manifest['hash']})",
        *[f"note: {note}" for note in sample.notes],
        *[
            f"test labels in {language}: {counts}"
            for language, counts in label_distribution(encoder.task, sample.test.to_pylist()).items()
        ],
        f"prompt length: median {lengths[len(lengths) // 2]}, longest {lengths[-1]} of max_tokens {job.train.max_tokens} ({len(lengths)} test prompts)",
        *label_words(job, encoder),
        f"trainable parameters of the method: {made.predicted_parameters():,}",
        *made.notes(),
        f"steps: {steps} a seed (about {prompts} prompts an epoch), {len(job.seeds)} seeds",
    ]
    return {
        "cells": prepared.keys,
        "folder": str(prepared.folder),
        "lines": [*lines, f"ok: results go to {prepared.folder}"],
    }


def label_words(job: Job, encoder: Encoder) -> list[str]:
    """How each label word is cut into tokens, per wording; nothing where a head reads."""
    readout, config = part_config(job.readout, "readout")
    if not readout.needs_slot:
        return []
    lines = []
    tokenizer = encoder.text.tokenizer
    for language in ["", *encoder.pattern.by_language]:
        wording = encoder.pattern.wording(language)
        columns = label_columns(encoder.text, encoder.task, wording, getattr(config, "mode", None), "verbalizer")
        shown = ", ".join(
            f"{name} = {(wording.verbalizer or {})[name]} {tokenizer.convert_ids_to_tokens(own)} {own}"
            for name, own in zip(encoder.task.label.names, columns, strict=True)
        )
        lines.append(f"label words{f' ({language})' if language else ''}: {shown}")
    return lines


def traced(prepared: Prepared, key: str | None) -> dict[str, Any]:
    """One test row from text to scores of the untrained model.

    Raises:
        UserError: no such row.
    """
    job = prepared.job
    seed = job.seeds[0]
    sample = prepared.samples[seed]
    row = find_row(sample.test, key)
    backbone = load_backbone(job.backbone, job.train.dropout)
    learner = build_learner(job, backbone, seed).eval()
    encoder = Encoder.of(job, backbone.text, sample.demos)
    prompts, queries = encoder(row), encoder.queries(row)
    batch = collate(prompts, 0, [learner.method.columns(prompt) for prompt in prompts])
    with torch.no_grad():
        answers = learner.answer(batch)
    answer, scores = learner.readout.gather(prompts, answers)
    lines = [
        f"row {prompts[0].key}, gold {learner.readout.gold(prompts)}"
        + (f", {len(prompts)} prompts; the first:" if len(prompts) > 1 else ""),
        "prompt:",
        *["  " + line for line in readable(queries[0]).split("\n")],
        f"tokens ({len(prompts[0].ids)}):",
        "  " + " ".join(marked_tokens(backbone.text, prompts[0])),
        *label_words(job, encoder),
        "probabilities before training: "
        + ", ".join(f"{name} {p:.3f}" for name, p in zip(encoder.task.label.names, scores, strict=True))
        if encoder.task.kind == "choice" and len(scores) == len(encoder.task.label.names)
        else f"scores before training: {[round(score, 3) for score in scores]}",
        f"answer: {answer}",
    ]
    return {
        "key": prompts[0].key,
        "prompts": [readable(query) for query in queries],
        "tokens": backbone.text.tokenizer.convert_ids_to_tokens(prompts[0].ids),
        "marks": prompts[0].marks,
        "answer": answer,
        "scores": scores,
        "lines": lines,
    }


def marked_tokens(text: PromptTokenizer, prompt: Encoded) -> list[str]:
    """The tokens of a prompt, those with a mark as [mark:token]; the slots of a decoder are not among them."""
    at = {
        position: mark
        for mark, positions in prompt.marks.items()
        for position in positions
        if not (mark == "slot" and prompt.target)
    }
    tokens = text.tokenizer.convert_ids_to_tokens(prompt.ids)
    return [f"[{at[i]}:{token}]" if i in at else token for i, token in enumerate(tokens)]


def find_row(table: pa.Table, key: str | None) -> dict[str, Any]:
    """The row called language/id, the first where None.

    Raises:
        UserError: no such row.
    """
    for row in table.to_pylist():
        if key is None or f"{row['language']}/{row['id']}" == key:
            return row
    raise UserError(f'show: no test row "{key}"; keys are language/id, e.g. {table["language"][0]}/{table["id"][0]}')


def catalogue(what: str) -> list[str]:
    """One line per entry of a catalogue.

    Raises:
        UserError: no such catalogue.
    """
    catalogues = {
        "tasks": lambda: [_task_line(name) for name in task_names()],
        "methods": lambda: [
            f"{name:12} {_first_line(method_class(name).__module__)}  families: {', '.join(method_class(name).families)}"
            for name in method_names()
        ],
        "readouts": lambda: [f"{name:12} {_first_line(readout_class(name).__module__)}" for name in readout_names()],
        "backbones": lambda: [
            f"{name:14} {alias.hub}: {alias.about}" + (" (gated)" if alias.gated else "")
            for name, alias in ALIASES.items()
        ],
        "recipes": lambda: [f"{name:12} {recipe_source(name)}" for name in recipe_names()],
        "matrix": lambda: [matrix()],
        "schema": lambda: [json.dumps(Job.model_json_schema(), indent=1)],
    }
    if what not in catalogues:
        raise UserError(f'list: "{what}" is unknown; {nearest(what, catalogues)}')
    return catalogues[what]()


def _task_line(name: str) -> str:
    task = load_task(name)
    return f"{name:16} {task.about}; {len(task.languages)} languages, labels: {', '.join(task.label.names)}; patterns: {', '.join(task.patterns)}"


def _first_line(module: str) -> str:
    import importlib  # noqa: PLC0415

    paragraph = (importlib.import_module(module).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())
