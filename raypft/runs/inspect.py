"""What `check` and `show` print: a job and a row looked at without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pa_compute
import torch

from raypft.backbones.load import load_backbone
from raypft.backbones.text import PromptTokenizer
from raypft.batch import collate
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods.base import Method
from raypft.readouts.verbalizer import label_columns
from raypft.runs.cell import build_learner
from raypft.runs.memory import Counts, check_memory, foreseen, rows_held, told
from raypft.runs.prepare import Prepared
from raypft.runs.run import check_unchanged
from raypft.runs.trackers import check_tracker
from raypft.storage import check_free, check_writable
from raypft.tasks.prompts import readable
from raypft.training.encode import Encoder, Expected, expected, label_distribution, prompts_an_epoch
from raypft.training.loop import expect_scores

compute: Any = pa_compute  # its functions are made at import
LOOKED_AT = 200
"""Rows whose prompts are counted and measured."""
EXTREMES = 5
"""Longest and shortest rows of each language of which prompts are made."""


def checked(prepared: Prepared, nodes: Sequence[float] = ()) -> dict[str, Any]:
    """What is known of a prepared job: sizes, label words, parameters, steps.

    Args:
        nodes: see `check_memory`.

    Raises:
        UserError: its results can't be written, or are another version's, or another process is at work on them; a row
        makes no prompt; memory does not hold it.
    """
    job, skeleton = prepared.job, prepared.skeleton
    check_start(prepared, nodes)
    check_free(prepared.folder)
    check_unchanged(prepared)
    seed = job.seeds[0]
    sample, manifest = prepared.samples[seed], prepared.manifests[seed]
    sizes = manifest["sizes"]
    encoder = Encoder.of(prepared.resolved, skeleton.text, sample.demos)
    found = expected(sample, encoder, LOOKED_AT)
    lengths = sorted(found["test"].lengths)
    prompts = round(prompts_an_epoch(sample, found))
    steps = -(-prompts // job.train.batch_size) * job.train.epochs
    method = method_shape(prepared)
    counts = label_distribution(encoder.task, sample.test.to_pylist())
    lines = [
        f"{job.recipe}: {job.task}, {job.backbone} "
        f"({skeleton.family}, {skeleton.num_layers} layers of {skeleton.hidden})",
        f"pattern {job.pattern}: {json.dumps(prepared.resolved.pattern.text, ensure_ascii=False)}",
        f"rows: {sizes['train']} train, {sizes['dev']} dev, {sizes['test']} test, {sizes['demos']} demonstrations "
        f"(seed {seed}, manifest {manifest['hash']})",
        *[f"note: {note}" for note in sample.notes],
        *[f"warning: {line}" for line in prepared.warnings.get(seed, [])],
        *[f"test labels in {language}: {of_language}" for language, of_language in counts.items()],
        _length_told(lengths, job.train.max_tokens, bool(encoder.task.kind.passage)),
        *label_words(encoder),
        f"trainable parameters of the method: {method.predicted_parameters():,}",
        memory_told(prepared, method, found),
        *method.notes(),
        f"steps: {steps} a seed (about {prompts} prompts an epoch), {len(job.seeds)} seeds",
        f"ok: results go to {prepared.folder}",
    ]
    return {"cells": prepared.keys, "folder": str(prepared.folder), "lines": lines}


def _length_told(lengths: Sequence[int], most: int, divides: bool) -> str:
    """How long prompts are, and how many fill all there is; divides: a longer text is read in windows."""
    full, how = sum(length >= most for length in lengths), "read in windows" if divides else "shortened"
    longer = f", {full} of them full: longer texts are {how}" if full else ""
    middle, longest, count = lengths[len(lengths) // 2], lengths[-1], len(lengths)
    return f"prompt length: median {middle}, longest {longest} of max_tokens {most} ({count} test prompts{longer})"


def check_start(prepared: Prepared, nodes: Sequence[float] = ()) -> None:
    """What can be told before a run's folder is made.

    Args:
        nodes: see `check_memory`.

    Raises:
        UserError: the tracker's package is not installed; nothing can be written there; memory does not hold the job; a
            row makes no prompt.
    """
    check_tracker(prepared.job.tracker)
    check_writable(prepared.folder)
    kept = prepared.job.train.cache_folder
    if kept is not None and not prepared.job.resources.workers:
        check_writable(Path(kept), "train.cache_folder")
    check_memory(prepared.job, counted(prepared, method_shape(prepared)), nodes)
    _check_extremes(prepared)


def _check_extremes(prepared: Prepared) -> None:
    """Make prompts of the longest and shortest rows of every seed, so that what does not fit is not met by its turn.

    Raises:
        UserError: a row makes no prompt.
    """
    fields = list(prepared.resolved.task.fields.values())
    for sample in {id(sample): sample for sample in prepared.samples.values()}.values():
        encoder = Encoder.of(prepared.resolved, prepared.skeleton.text, sample.demos)
        for table in (sample.train, sample.dev, sample.test):
            for row in [] if table is None else extremes(table, fields):
                encoder(row)


def extremes(table: pa.Table, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of which a field, or its longest word where it holds words, is among the `EXTREMES` longest or shortest
    of its language."""
    chosen: set[int] = set()
    languages = table["language"].combine_chunks()
    for language in languages.unique():
        own = compute.indices_nonzero(compute.equal(languages, language))
        for field in fields:
            column = table[field].combine_chunks().take(own)
            for sizes in [compute.utf8_length(column)] if not pa.types.is_list(column.type) else _sizes(column):
                order = own.take(compute.sort_indices(sizes)).to_pylist()
                chosen.update(order[:EXTREMES] + order[-EXTREMES:])
    return table.take(sorted(chosen)).to_pylist()


def _sizes(column: Any) -> list[pa.Array]:
    """Number of words and length of the longest, [rows] each."""
    words = pa.table({"row": compute.list_parent_indices(column), "size": compute.utf8_length(column.flatten())})
    longest = words.group_by("row").aggregate([("size", "max")]).sort_by("row")
    return [compute.list_value_length(column), longest["size_max"].combine_chunks()]


def method_shape(prepared: Prepared) -> Method:
    """The method of a job on the skeleton, which it keeps until that is reset; without weights, for counting."""
    resolved, skeleton = prepared.resolved, prepared.skeleton
    skeleton.reset()
    with torch.device("meta"):
        return resolved.method(resolved.method_config, skeleton)


def counted(prepared: Prepared, method: Method) -> Counts:
    """What decides how much memory a job takes.

    Args:
        method: see `method_shape`.
    """
    resolved, tokens = prepared.resolved, prepared.job.train.max_tokens
    return Counts.of(method, resolved.readout.scored(resolved.readout_config, tokens) / tokens)


def memory_told(prepared: Prepared, method: Method, found: Mapping[str, Expected]) -> str:
    """A line on the memory that a job takes.

    Args:
        method: see `method_shape`; found: see `expected`.
    """
    rows = rows_held(sum(role.prompts for role in found.values()), sum(role.tokens for role in found.values()))
    return told(prepared.job, foreseen(prepared.job, counted(prepared, method)), rows)


def label_words(encoder: Encoder) -> list[str]:
    """How each label word is cut into tokens, per wording; nothing where a head reads."""
    if not encoder.readout.needs_slot:
        return []
    task, text, mode = encoder.task, encoder.text, getattr(encoder.readout_config, "mode", None)
    lines = []
    for language in ["", *encoder.pattern.by_language]:
        wording = encoder.pattern.wording(language)
        columns = label_columns(text, task, wording, mode, "verbalizer")
        shown = []
        for name, ids in zip(task.label.names, columns, strict=True):
            pieces = text.tokenizer.convert_ids_to_tokens(ids)
            shown.append(f"{name} = {(wording.verbalizer or {})[name]} {pieces} {ids}")
        lines.append(f"label words{f' ({language})' if language else ''}: {', '.join(shown)}")
    return lines


def traced(prepared: Prepared, key: str | None) -> dict[str, Any]:
    """One test row from text to scores of the untrained model.

    Args:
        key: language/id of the row, the first where None.

    Raises:
        UserError: no such row; its scores say nothing.
    """
    job = prepared.job
    seed = job.seeds[0]
    sample = prepared.samples[seed]
    row = find_row(sample.test, key)
    backbone = load_backbone(job.backbone, job.train.dropout, quantized=job.train.quantize)
    learner = build_learner(prepared.resolved, backbone, seed).eval()
    encoder = Encoder.of(prepared.resolved, backbone.text, sample.demos)
    prompts = encoder(row)
    first, queries = prompts[0], [readable(query) for query in encoder.queries(row)]
    batch = collate(prompts, 0, [learner.method.columns(prompt) for prompt in prompts])
    with torch.no_grad():
        answers = expect_scores(learner.answer(batch))
    answer, scores = learner.readout.gather(prompts, answers)
    lines = [
        f"row {first.key}, gold {learner.readout.gold(prompts)}"
        + (f", {len(prompts)} prompts; the first:" if len(prompts) > 1 else ""),
        "prompt:",
        *["  " + line for line in queries[0].split("\n")],
        f"tokens ({len(first.ids)}):",
        "  " + " ".join(marked_tokens(encoder.text, first)),
        *label_words(encoder),
        _scores_line(encoder, scores),
        f"answer: {answer}",
        *[f"warning: {line}" for line in prepared.warnings.get(seed, [])],
    ]
    return {
        "key": first.key,
        "prompts": queries,
        "tokens": encoder.text.tokenizer.convert_ids_to_tokens(first.ids),
        "marks": first.marks,
        "answer": answer,
        "scores": scores,
        "lines": lines,
    }


def _scores_line(encoder: Encoder, scores: list[float]) -> str:
    names = encoder.task.label.names
    if not (encoder.task.kind.one_label and len(scores) == len(names)):
        return f"scores before training: {[round(score, 3) for score in scores]}"
    shown = [f"{name} {score:.3f}" for name, score in zip(names, scores, strict=True)]
    return f"probabilities before training: {', '.join(shown)}"


def marked_tokens(text: PromptTokenizer, prompt: Encoded) -> list[str]:
    """The tokens of a prompt, those with a mark as [mark:token]; the slots of a decoder are not among them."""
    mark_at: dict[int, str] = {}
    for mark, positions in prompt.marks.items():
        if not (mark == "slot" and prompt.target):
            mark_at |= dict.fromkeys(positions, mark)
    tokens = text.tokenizer.convert_ids_to_tokens(prompt.ids)
    return [f"[{mark_at[i]}:{token}]" if i in mark_at else token for i, token in enumerate(tokens)]


def find_row(table: pa.Table, key: str | None) -> dict[str, Any]:
    """The row called language/id, the first where None.

    Raises:
        UserError: no such row.
    """
    for row in table.to_pylist():
        if key is None or f"{row['language']}/{row['id']}" == key:
            return row
    raise UserError(f'show: no test row "{key}"; keys are language/id, e.g. {table["language"][0]}/{table["id"][0]}')
