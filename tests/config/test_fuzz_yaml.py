"""Files of jobs, tasks and campaigns with something wrong anywhere: refused in lines a user can act on, and nothing is
written. What fails is made smaller and comes again."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings, strategies

from raypft.campaigns.load import load_campaign
from raypft.config.load import load_job
from raypft.errors import UserError
from raypft.tasks.load import load_task

TASK: dict[str, Any] = {
    "about": "x",
    "kind": "choice",
    "fields": {"a": "premise", "b": "hypothesis"},
    "label": {"column": "label", "names": ["no", "yes"]},
    "languages": ["en", "de"],
    "metric": "accuracy",
    "metrics": ["accuracy"],
    "pivot": "en",
    "sources": {
        "files": {"files": {"train": "t", "test": "e-{language}"}, "labels": {"0": "no"}, "columns": {"a": ["x", "y"]}},
        "hub": {
            "hub": "a/b",
            "config": {"train": "c"},
            "split_languages": {"test": ["en"]},
            "languages": {"en": "eng"},
        },
    },
    "patterns": {
        "p": {"text": "<demos>{a} {b} <slot>", "verbalizer": {"no": "bad", "yes": ["good"]}, "mode": "mean"},
        "q": {"text": "{a|strip}", "by_language": {"de": {"text": "{b}"}}},
    },
}
SHORT: dict[str, Any] = {
    "kind": "choice",
    "files": "a.csv",
    "fields": ["text"],
    "labels": ["no", "yes"],
    "label": "topic",
    "columns": {"text": "Text"},
    "patterns": {"p": "{text} <slot>"},
}
JOB: dict[str, Any] = {
    "from": "lora",
    "recipe": "mine",
    "task": "sentiment",
    "pattern": "gnnavi",
    "backbone": "gpt2",
    "method": {"name": "lora", "rank": 4},
    "readout": {"name": "verbalizer", "mode": "mean"},
    "protocol": "fixed",
    "shots": 4,
    "seeds": [0, 1],
    "train": {"languages": ["en"], "epochs": 2, "lr": 0.1, "precision": "fp32"},
    "dev": {"rows": "full", "limit": 3},
    "test": {"languages": ["en"]},
    "resources": {"workers": 1},
    "zero": {"stage": 2},
    "train.batch_size": 4,
}
CAMPAIGN: dict[str, Any] = {
    "about": "x",
    "defaults": {"backbone": "gpt2", "train": {"epochs": 1}, "seeds": [0]},
    "before": {"T": {"recipe": "icl", "set": {"task": "sst2"}}},
    "rows": {"A": {"recipe": "lora", "set": {"train.lr": 0.1}}, "B": {"recipe": "icl"}, "MAJ": "majority"},
    "tasks": ["sst2"],
    "vary": {"shots": [1, 2]},
    "columns": "shots",
    "search": {"space": {"method.rank": {"range": [1, 4]}}, "searcher": "random", "trials": 2, "rows": ["A"]},
    "paper": {"values": {"A": {"sst2": 1.0}}},
    "scales": {"small": {"rows": ["A"], "defaults": {"seeds": [1]}}},
}
ODD: list[Any] = [
    *(None, True, -1, 0, 3, 10**30, 1e308, float("nan"), float("inf"), [], [[]], [None], ["x"], ["x", "x"], [1, 2]),
    *(
        "",
        " ",
        "x",
        "\u00e9\u4e2d\U0001f600",
        "\x00",
        "{",
        "{}",
        "{a",
        "<slot>",
        "<soft>",
        "{language}",
        "../x",
        "/",
        "a/b",
    ),
    *("x.py", "x.y", "mine.yaml", "before:T", "before:", "name", "a" * 300, {}, {"name": "x"}, {"name": None}),
    *({"name": {}}, {"x": {"y": {}}}, {"usual": "x"}),
]
NAMES = ("name", "\u00e9", 1, None, True)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested values."""
    found = [path] if path else []
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in keys:
        found += places(below, (*path, key))
    return found


def mutated(base: dict[str, Any], source: random.Random) -> dict[str, Any]:
    """The values with one to three of: a key dropped, renamed, doubled below itself, an odd value."""
    values = copy.deepcopy(base)
    for _ in range(source.randint(1, 3)):
        every = places(values)
        if not every:
            break
        *groups, last = source.choice(every)
        level: Any = values
        for key in groups:
            level = level[key]
        what = source.choice(["drop", "rename", "swap", "odd", "odd", "odd", "nest", "more"])
        if what == "drop":
            del level[last]
        elif what == "rename" and isinstance(level, dict):
            level[source.choice([str(last)[:-1], f"{last}s", f"{last}.x", "name", "\u00e9", 1, None, True])] = (
                level.pop(last)
            )
        elif what == "swap":
            other: Any = values
            *others, final = source.choice(every)
            try:
                for key in others:
                    other = other[key]
                level[last] = copy.deepcopy(other[final])
            except (KeyError, IndexError, TypeError):
                level[last] = 1
        elif what == "nest":
            level[last] = {"x": level[last]} if source.random() < 0.5 else [level[last]]
        elif what == "more" and isinstance(level, dict):
            level[source.choice(["name", "scale", "x", "from", "files", "labels", "root"])] = source.choice(ODD)
        else:
            level[last] = copy.deepcopy(source.choice(ODD))
    return values


def check_refused(read: Callable[[str], Any], base: dict[str, Any], count: int, folder: Any) -> None:
    """Read so many changed files; only a UserError may come, its lines short, and no file beside them."""
    path, refused = folder / "mine.yaml", list[str]()

    @settings(max_examples=count, derandomize=True, deadline=None, database=None)
    @given(strategies.randoms(use_true_random=False))
    def holds(source: random.Random) -> None:
        values = mutated(base, source)
        path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
        try:
            read(str(path))
        except UserError as error:
            refused.append(str(error))
            for line in refused[-1].split("\n"):
                assert line.strip(), values
                assert len(line) < 2000, line
        assert [file.name for file in folder.iterdir()] == ["mine.yaml"]

    holds()
    assert len(refused) > count / 3


@pytest.mark.parametrize("base", [TASK, SHORT], ids=["long", "short"])
def test_a_task_with_anything_wrong_is_refused_in_lines(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_task_of_base(base, tmp_path)
    check_refused(load_task, base, 600, tmp_path)


def load_task_of_base(base: dict[str, Any], folder: Any) -> None:
    """The unchanged file is a good one."""
    (folder / "mine.yaml").write_text(yaml.safe_dump(base))
    load_task(str(folder / "mine.yaml"))


def test_a_job_with_anything_wrong_is_refused_in_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(JOB))
    load_job("mine.yaml")
    check_refused(load_job, JOB, 400, tmp_path)


def test_a_campaign_with_anything_wrong_is_refused_in_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CAMPAIGN))
    load_campaign("mine.yaml")
    load_campaign("mine.yaml", scale="small")
    check_refused(load_campaign, CAMPAIGN, 250, tmp_path)
    check_refused(lambda path: load_campaign(path, scale="small"), CAMPAIGN, 150, tmp_path)


@pytest.mark.parametrize(
    "text", ["", "- a", "a: b: c", "a: [", "? {a: 1}\n: 2", "a: &x [*x]", "a: 1\na: 2", "\t", "a: !!python/x y"]
)
def test_a_file_that_is_no_mapping_is_refused_in_a_line(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    for read in (load_task, load_job, load_campaign):
        with pytest.raises(UserError):
            read(str(tmp_path / "mine.yaml"))


FOUND = {
    "a job that comes first and needs itself": (load_campaign, {**CAMPAIGN, "before": {"T": {"recipe": "before:T"}}}),
    "through another": (
        load_campaign,
        {
            **CAMPAIGN,
            "before": {
                "T": {"recipe": "icl", "set": {"task": "sst2", "method.x": "before:U"}},
                "U": {"recipe": "icl", "set": {"task": "sst2", "method.x": "before:T"}},
            },
        },
    ),
    "an empty interval": (load_campaign, {**CAMPAIGN, "search": {"space": {"shots": {"uniform": None}}}}),
    "defaults that are no keys": (load_campaign, {**CAMPAIGN, "defaults": "x"}),
    "scales without keys": (load_campaign, {**CAMPAIGN, "scales": {"small": 3}}),
    "a key of a method that is no text": (load_job, {**JOB, "method": {"name": "lora", 1: 2}}),
    "an empty task": (load_job, {**JOB, "task": ""}),
    "a name longer than a file may have": (load_job, {**JOB, "from": "a" * 300}),
    "a file's name longer than it may be": (load_job, {**JOB, "task": f"{'a' * 300}.yaml"}),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_the_changes_found_is_refused(what, tmp_path):
    read, values = FOUND[what]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError):
        read(str(tmp_path / "mine.yaml"))
