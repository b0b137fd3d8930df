"""What goes with what: every combination allowed runs on a tiny model, every other one is refused with what works."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml

from raypft.batch import collate
from raypft.cli import main
from raypft.config.compatibility import (
    FAMILIES,
    MARKERS,
    MARKUP,
    check_fit,
    check_job,
    matrix,
    readouts_for,
    rendered,
    short_matrix,
)
from raypft.config.job import Job, Resources, Train, Zero
from raypft.config.load import load_job, look_up
from raypft.config.resolved import ResolvedJob
from raypft.contract import cases, tiny
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.readouts import READOUTS, span
from raypft.runs.scores import by_row
from raypft.tasks.kinds import KINDS
from raypft.training.encode import Encoder
from raypft.training.stepper import Learner

README = Path(__file__).parents[2] / "README.md"
WORDS = {"negative": "bad", "positive": "good"}
NAMED = {"column": "label", "names": list(WORDS)}
ROWS = {
    "choice": {"text": "the film was good", "label": "positive"},
    "tags": {"tokens": ["good", "bad", "film"], "label": ["positive", "negative", "negative"]},
    "span": {"question": "is it good ?", "context": "the film was good", "label": ["good"], "starts": [13]},
    "text": {"text": "the film was", "label": "good"},
    "mlm": {"text": "the film was good", "label": ""},
}
TEXTS = {
    "choice": "{text}",
    "tags": "{tokens}",
    "span": "{question} <sep> {context}",
    "text": "{text}",
    "mlm": "{text}",
}
METRICS = {"choice": "accuracy", "tags": "token_accuracy", "span": "f1", "text": "accuracy", "mlm": "token_accuracy"}
COMBINATIONS = list(itertools.product(METHODS.names(), FAMILIES, READOUTS.names(), KINDS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task of every kind: pattern by family, with <slot> where a readout needs it."""
    place = tmp_path_factory.mktemp("tasks")
    for kind, row in ROWS.items():
        patterns = {}
        for family, soft, slot in itertools.product(FAMILIES, (True, False), (True, False)):
            asked = " {token}" if kind == "tags" and slot else ""
            text = TEXTS[kind] + asked + (" <soft>" if soft else "") + (" <slot>" if slot else "")
            text = ("<demos>" if family == "causal" and kind == "choice" else "") + text
            verbalizer = {"verbalizer": WORDS} if kind in ("choice", "tags") else {}
            if not slot or verbalizer:
                patterns[f"{family}-{soft}-{slot}"] = {"text": text, "source": "test", **verbalizer}
        known = {"label": NAMED} if kind in ("choice", "tags") else {}
        task = {
            "about": "test",
            "kind": kind,
            "fields": {name: name for name in row if name not in ("label", "starts")},
            **known,
            "languages": ["en"],
        }
        task |= {
            "metric": METRICS[kind],
            "sources": {"files": {"files": {"train": "x", "test": "x"}}},
            "patterns": patterns,
        }
        (place / f"{kind}.yaml").write_text(yaml.safe_dump(task))
    return place


def job(folder: Path, method: str, family: str, readout: str, kind: str, stage: int = 0) -> ResolvedJob:
    soft = "soft" in METHODS.load(method).marks
    slot = kind in ("choice", "tags") and (
        READOUTS.load(readout).needs_slot or "demo_label" in METHODS.load(method).marks
    )
    made = Job(
        task=f"{folder}/{kind}.yaml",
        pattern=f"{family}-{soft}-{slot}",
        backbone="tiny",
        method={"name": method},
        readout={"name": readout},
        train=Train(max_tokens=48),
        zero=Zero.model_validate({"stage": stage}),
        resources=Resources(workers=1 if stage else 0),
        demos=1,
    )
    return look_up(made)


def allowed(method: str, family: str, readout: str, kind: str) -> bool:
    return readout in readouts_for(METHODS.load(method), family, kind)


def test_every_axis_is_used():
    """No method, readout, family or kind stands in the catalogue without one combination."""
    for axis in range(4):
        assert {c[axis] for c in COMBINATIONS if allowed(*c)} == {c[axis] for c in COMBINATIONS}


@pytest.mark.parametrize("combination", [c for c in COMBINATIONS if allowed(*c)], ids="-".join)
def test_what_goes_together_trains_and_answers(combination, folder):
    method, family, _, kind = combination
    made = job(folder, *combination)
    check_job(made, family)
    backbone = tiny.backbone(tiny.FAMILIES[family][0])
    made = replace(made, method_config=cases.config_of(method, backbone))
    row = {"id": "0", "language": "en", **ROWS[kind]}
    demos = (
        pa.Table.from_pylist([{**row, "label": label} for label in WORDS])
        if kind == "choice" and family == "causal"
        else None
    )
    encoder = Encoder.of(made, backbone.text, demos)
    learner = Learner(
        METHODS.load(method)(cases.config_of(method, backbone), backbone),
        encoder.readout(encoder.readout_config, encoder.task, encoder.pattern, backbone),
    )
    prompts = encoder(row)
    batch = collate(prompts, 1, [learner.method.columns(prompt) for prompt in prompts])
    loss, weight = learner.readout.loss(learner(batch), batch)
    assert weight > 0
    assert torch.isfinite(loss)
    if learner.trainable():
        loss.backward()
        assert sum(float(p.grad.abs().sum()) for p in learner.trainable().values() if p.grad is not None) > 0
    with torch.no_grad():
        (answered,) = by_row(learner.eval().readout, prompts, learner.answer(batch))
    assert type(answered.answer) is type(answered.gold) or kind == "span"


@pytest.mark.parametrize("combination", [c for c in COMBINATIONS if not allowed(*c)], ids="-".join)
def test_what_does_not_is_refused_with_what_works(combination, folder):
    """Following the advice of the message for a readout leads to something that goes together."""
    method, family, _, kind = combination
    with pytest.raises(UserError) as caught:
        check_job(job(folder, *combination), family)
    line = str(caught.value)
    assert "\n" not in line
    for name in re.findall(r"use readout=(.*)$", line)[0].split(" or ") if "use readout=" in line else []:
        assert allowed(method, family, name, kind)
    for name in re.findall(r"use method=(.*)$", line)[0].split(" or ") if "use method=" in line else []:
        assert readouts_for(METHODS.load(name), family, kind)


LINES = {
    ("gnnavi", "masked", "head", "choice"): "method: gnnavi works with causal models; tiny is masked",
    (
        "gnnavi",
        "causal",
        "span",
        "span",
    ): "method: gnnavi works with tasks of kind choice; span is span; use method=adapter or bitfit",
    (
        "full",
        "masked",
        "verbalizer",
        "span",
    ): "readout: verbalizer does not answer tasks of kind span (span); use readout=span",
    (
        "full",
        "seq2seq",
        "head",
        "choice",
    ): "readout: head works with masked and causal models; tiny is seq2seq; use readout=text",
    ("full", "causal", "mlm", "mlm"): "readout: mlm works with masked models; tiny is causal; use a masked backbone",
    (
        "gnnavi",
        "causal",
        "head",
        "mlm",
    ): "method: gnnavi works with tasks of kind choice; mlm is mlm; use a masked backbone",
    (
        "adapter",
        "masked",
        "head",
        "text",
    ): "readout: head does not answer tasks of kind text (text); use a seq2seq backbone",
}


@pytest.mark.parametrize("combination", LINES, ids="-".join)
def test_lines(combination, folder):
    with pytest.raises(UserError) as caught:
        check_job(job(folder, *combination), combination[1])
    assert str(caught.value).startswith(LINES[combination])


@pytest.mark.parametrize("kind", ["albert", "xlm"])
def test_blocks_that_are_no_modules_of_their_own_do_not_run_again(kind, folder):
    made = job(folder, "full", "masked", "head", "choice")
    settings = {"demos": 0, "train": Train(max_tokens=48, checkpointing=True)}
    line = (
        rf"^train\.checkpointing: found true; the body of {kind} models is no row of blocks, which could run again; set"
    )
    with pytest.raises(UserError, match=line):
        check_fit(replace(made, job=made.job.model_copy(update=settings)), tiny.backbone(kind))


def test_loading_refuses_what_no_backbone_can_mend():
    base = ["task=xnli", "backbone=mbert"]
    for words, line in (
        (
            ["readout=span"],
            "readout: span does not answer tasks of kind choice (xnli); use readout=head or text or verbalizer",
        ),
        (
            ["method=gnnavi", "readout=text"],
            "readout: text works with seq2seq models, method gnnavi with causal; use readout=head or verbalizer",
        ),
        (
            ["method=ticket_search", "zero.stage=3", "resources.workers=1"],
            "zero.stage: found 3; method ticket_search works up to stage 2",
        ),
        (
            ["dev.metric=accurcy"],
            'profit: dev.metric: "accurcy" is unknown; did you mean "accuracy"? known: accuracy',
        ),
    ):
        with pytest.raises(UserError) as caught:
            load_job("profit", [*base, *words])
        assert str(caught.value) == line


@pytest.mark.parametrize(
    ("recipe", "more"), [("vanilla_tags", []), ("topro_mt5", []), ("vanilla_mt5", ["readout=head"])]
)
def test_only_sentences_written_with_their_tags_are_selected_by_span_f1(recipe, more):
    base = ["task=panx", "backbone=x", "dev.metric=span_f1"]
    assert load_job("vanilla_mt5", base).job.dev.metric == "span_f1"
    with pytest.raises(UserError, match=r"^dev\.metric: found span_f1, which reads sentences written with their tags"):
        load_job(recipe, [*base, *more])


def test_windows_that_share_all_they_hold_are_refused_before_anything_runs(folder):
    """A question may take half of a prompt: 24 of 48 tokens are sure to be the passage's."""
    backbone = tiny.backbone("bert")
    made = job(folder, "full", "masked", "span", "span")
    made = replace(made, job=made.job.model_copy(update={"demos": 0}))
    for overlap in (23, 24):
        resolved = replace(made, readout_config=span.Config(window_overlap=overlap))
        if overlap < 24:
            check_fit(resolved, backbone)
        else:
            with pytest.raises(
                UserError, match=r"^readout\.window_overlap: found 24; a window may have room for only 24"
            ):
                check_fit(resolved, backbone)


def test_every_stage_of_the_matrix_is_allowed(folder):
    for name in METHODS.names():
        cls = METHODS.load(name)
        kind = "choice"
        for stage in range(4):
            made = job(folder, name, cls.families[0], readouts_for(cls, cls.families[0], kind)[0], kind, stage)
            if stage <= cls.max_zero_stage:
                check_job(made, cls.families[0])
            else:
                with pytest.raises(UserError, match=f"works up to stage {cls.max_zero_stage}"):
                    check_job(made, cls.families[0])


def test_marks_are_known():
    for name in METHODS.names():
        assert set(METHODS.load(name).marks) <= set(MARKUP)


def test_the_readme_is_up_to_date():
    """`python tests/config/test_compatibility.py` renders it."""
    text = README.read_text(encoding="utf-8")
    assert rendered(text) == text, "run: python tests/config/test_compatibility.py"


def test_rendering_needs_markers():
    assert rendered(f"a\n{MARKERS[0]}\nold\n{MARKERS[1]}\nb") == f"a\n{MARKERS[0]}\n{short_matrix()}{MARKERS[1]}\nb"
    with pytest.raises(ValueError, match="expected the lines"):
        rendered("no markers")


@pytest.mark.parametrize("arguments", [["list", "matrix"], ["list", "--matrix"]])
def test_it_is_printed(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["raypft", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert capsys.readouterr().out.strip() == matrix().strip()


@pytest.mark.parametrize("arguments", [["list"], ["list", "tasks", "--matrix"]])
def test_list_names_one_catalogue(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["raypft", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "list: name one catalogue" in capsys.readouterr().err


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
