"""JSON Schemas: what is shipped is valid, what a user mistypes is not, what is a user's own is let through."""

from __future__ import annotations

import json

import jsonschema
import pytest
from test_cli import call

from raypft.campaigns.load import FOLDER as CAMPAIGNS
from raypft.campaigns.load import campaign_names, numbers
from raypft.cli.schemas import SCHEMAS, schema
from raypft.config.load import RECIPES, load_job, recipe_names
from raypft.schema import read_yaml
from raypft.tasks.load import FOLDER as TASKS
from raypft.tasks.load import task_names

VALIDATORS = {what: jsonschema.Draft202012Validator(schema(what)) for what in SCHEMAS}
JOB = {"task": "sentiment", "backbone": "bert", "method": "lora"}
TASK = {
    "kind": "choice",
    "files": "a.csv",
    "fields": ["text"],
    "labels": ["a", "b"],
    "patterns": {"p": "{text} <slot>"},
}
CAMPAIGN = {"about": "x", "rows": {"A": {"recipe": "lora"}}, "tasks": ["sst2"]}


@pytest.mark.parametrize("what", SCHEMAS)
def test_schemas_are_schemas(what, monkeypatch, capsys):
    jsonschema.Draft202012Validator.check_schema(schema(what))
    assert call(monkeypatch, "list", "schema", what) == 0
    assert json.loads(capsys.readouterr().out) == schema(what)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_valid_job_file(name):
    VALIDATORS["job"].validate(read_yaml(RECIPES / f"{name}.yaml", name))


@pytest.mark.parametrize("name", task_names())
def test_every_task_is_valid(name):
    VALIDATORS["task"].validate(read_yaml(TASKS / f"{name}.yaml", name))


@pytest.mark.parametrize("name", campaign_names())
def test_every_campaign_is_valid(name):
    VALIDATORS["campaign"].validate(numbers(read_yaml(CAMPAIGNS / f"{name}.yaml", name)))


def test_a_runs_own_job_file_is_valid():
    VALIDATORS["job"].validate(load_job("lora", ["task=sst2", "backbone=gpt2"]).job.model_dump(mode="json"))


GOOD = {
    "job": [
        {"from": "profit", "train.lr": 1e-4, "method.dropout": 0.1},
        {"from": "mine.yaml", "method": {"rank": 4}},
        {"method": "own/bitfit.py", "readout": "my_package.probe", "task": "mine.yaml"},
        {"method": {"name": "own/bitfit.py", "anything": 3}, "train": {"languages": "de"}},
        {"readout": {"mode": "mean"}},
    ],
    "task": [
        {"fields": "text", "label": "topic", "languages": "de", "columns": {"text": "Text"}},
        {"files": {"train": "a.csv", "test": "b.csv"}, "format": "csv", "metric": "macro_f1.py"},
    ],
    "campaign": [
        {"tasks": {"mine.yaml": {"shots": 4}}, "scales": {"small": {"rows": ["A"], "search": {"trials": 3}}}},
        {"rows": {"A": {"recipe": "mine.yaml", "set": {"method": {"ticket": "before:T"}}}, "MAJ": "majority"}},
        {"vary": {"shots": [1, 2]}, "search": {"space": {"method.rank": {"range": [1, 8]}}}},
    ],
}
BAD = {
    "job": [
        {"shot": 3},
        {"train": {"lrr": 1}},
        {"train": {"lr": 0}},
        {"method": "gnavi"},
        {"method": {"name": "lora", "rnk": 4}},
        {"method": {"name": "full", "rank": 4}},
        {"method": {"rnk": 4}},
        {"method": {"name": "lora", "rank": "four"}},
        {"method.rnk": 4},
        {"readout": "hed"},
        {"readout": {"name": "head", "traind": "all"}},
        {"protocol": "profti"},
        {"task": "xnly"},
        {"from": "profti"},
    ],
    "task": [
        {"kind": "choose"},
        {"fieds": ["text"]},
        {"label": {"colum": "x"}},
        {"patterns": {"p": {"txt": "x"}}},
        {"patterns": {"p": {"text": "x", "mode": "firstpiece"}}},
        {"metric": "acuracy"},
        {"labels": [1, 2]},
        {"format": "exel"},
        {"sources": {"a": {"file": "x"}}},
    ],
    "campaign": [
        {"scale": {"small": {}}},
        {"rows": {"A": {"recipe": "lroa"}}},
        {"rows": {"A": {"recipe": "lora", "set": {"train.lrr": 1}}}},
        {"rows": {"A": "majorty"}},
        {"defaults": {"protocol": "profti"}},
        {"defaults": {"method": {"name": "lora", "rnk": 2}}},
        {"tasks": ["xnly"]},
        {"vary": {"shoots": [1]}},
        {"search": {"space": {"method.rnk": [1]}}},
        {"search": {"space": {"shots": [1]}, "searcher": "tpee"}},
        {"scales": {"small": {"row": ["A"]}}},
    ],
}
BASES = {"job": JOB, "task": TASK, "campaign": CAMPAIGN}


def cases(listed):
    return [pytest.param(what, more, id=f"{what}-{more}") for what, of_one in listed.items() for more in of_one]


def test_the_bases_of_these_tests_are_valid():
    for what, base in BASES.items():
        VALIDATORS[what].validate(base)


@pytest.mark.parametrize(("what", "more"), cases(GOOD))
def test_short_forms_and_what_is_ones_own_are_valid(what, more):
    VALIDATORS[what].validate({**BASES[what], **more})


@pytest.mark.parametrize(("what", "more"), cases(BAD))
def test_what_is_mistyped_is_refused(what, more):
    with pytest.raises(jsonschema.ValidationError):
        VALIDATORS[what].validate({**BASES[what], **more})
