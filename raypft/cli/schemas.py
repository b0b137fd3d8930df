"""JSON Schemas of job, task and campaign files, for editors: what the strict models take, with the names there are and
the keys each method and readout has. A user's own plug-ins, tasks and job files, by path or module, are let through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from raypft.campaigns.campaign import BEFORE, MAJORITY, Campaign
from raypft.catalogue import Catalogue
from raypft.config.job import Job
from raypft.config.load import recipe_names
from raypft.data.sampling import PROTOCOLS
from raypft.errors import UserError, nearest
from raypft.methods import METHODS
from raypft.readouts import READOUTS
from raypft.tasks import short_forms
from raypft.tasks.load import task_names
from raypft.tasks.metrics import METRICS
from raypft.tasks.task import Task

Schema = dict[str, Any]
OWN = r"\.py$|^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"
"""A file or module of the user's, as `catalogue.is_own` has it."""
YAML = r"\.ya?ml$"


def schema(what: str) -> Schema:
    """The JSON Schema of a kind of file.

    Raises:
        UserError: there is no such kind.
    """
    if what not in SCHEMAS:
        raise UserError(f'list schema: "{what}" is unknown; {nearest(what, SCHEMAS)}')
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMAS[what]()}


def job_schema() -> Schema:
    """Of a job file, whose other keys may come from a recipe or from the command."""
    made = Job.model_json_schema()
    keys = _job_keys(made)
    return {**made, **keys, "required": [], "anyOf": [{"required": ["method"]}, {"required": ["from"]}]}


def task_schema() -> Schema:
    """Of a task, short forms included; its name is the file's."""
    made = Task.model_json_schema()
    properties = made["properties"] | short_forms.SCHEMA
    metric = _named(METRICS, OWN)
    properties |= {"metric": metric, "metrics": {"type": "array", "items": metric, "minItems": 1}}
    rows = [{"required": ["files"]}, {"required": ["sources"]}]
    return {**made, "properties": properties, "required": ["kind", "fields"], "anyOf": rows}


def campaign_schema() -> Schema:
    """Of a campaign, with the keys of jobs wherever these stand; its name is the file's."""
    made, job = Campaign.model_json_schema(), Job.model_json_schema()
    keys = _job_keys(job)
    del keys["properties"]["from"]
    definitions = made["$defs"] | job["$defs"] | {"JobKeys": {"type": "object", **keys}}
    group = {"$ref": "#/$defs/JobKeys"}
    row = definitions["Row"]
    row["properties"] |= {"recipe": _named(recipe_names(), YAML), "set": group}
    dimension = definitions["Dimension"]
    definitions["Dimension"] = {"anyOf": [{"type": "array", "minItems": 1}, dimension]}
    dotted = {"patternProperties": keys["patternProperties"], "additionalProperties": False}
    known = {name: {"type": "array"} for name in keys["properties"]}
    search = definitions["Search"]["properties"]
    dimensions = {key: {"$ref": "#/$defs/Dimension"} for key in keys["properties"]}
    space = {"type": "object", "properties": dimensions, **_each(dotted, {"$ref": "#/$defs/Dimension"})}
    search["space"] |= space
    listed = {"type": "array", "items": {"type": "string"}}
    search["rows"] |= {"anyOf": [listed, {"type": "object", "additionalProperties": space}, {"type": "null"}]}
    task = _named(task_names(), YAML)
    tasks = {
        "anyOf": [
            {"type": "array", "items": task, "minItems": 1},
            {
                "type": "object",
                "properties": dict.fromkeys(task_names(), group),
                "patternProperties": {YAML: group},
                "additionalProperties": {**group, "required": ["task"]},  # the name is only a label
                "minProperties": 1,
            },
        ]
    }
    properties = made["properties"] | {
        "defaults": group,
        "rows": made["properties"]["rows"] | {"additionalProperties": {"anyOf": [{"const": MAJORITY}, row]}},
        "tasks": tasks,
        "vary": {"type": "object", "properties": known, **_each(dotted, {"type": "array", "minItems": 1})},
    }
    del properties["scale"]
    names = {"type": "array", "items": {"type": "string"}}
    overlay = {key: properties[key] for key in ("about", "defaults", "before", "vary", "columns", "tracker")}
    overlay |= {key: {"anyOf": [names, properties[key]]} for key in ("rows", "tasks")}
    overlay["search"] = {"anyOf": [{**definitions["Search"], "required": []}, {"type": "null"}]}
    properties["scales"] = {
        "type": "object",
        "additionalProperties": {"type": "object", "properties": overlay, "additionalProperties": False},
    }
    return {**made, "$defs": definitions, "properties": properties, "required": ["about", "rows", "tasks"]}


def _job_keys(made: Schema) -> Schema:
    """The keys of a job, nested and dotted, of its pydantic schema."""
    properties = dict(made["properties"])
    properties["from"] = _named(recipe_names(), YAML)
    properties["task"] = _named(task_names(), YAML)
    properties["protocol"] = _named(PROTOCOLS)
    patterns: Schema = {}
    for catalogue in (METHODS, READOUTS):
        keys = _keys_of(catalogue)
        properties[catalogue.part] = _part(catalogue, keys)
        names = "|".join(dict.fromkeys(itertools.chain.from_iterable(keys.values())))
        patterns[rf"^{catalogue.part}\.(name|{names})$"] = {}
    for group in ("train", "dev", "test", "data", "zero", "resources"):
        reference = properties[group]["$ref"]
        for key in made["$defs"][reference.rpartition("/")[2]]["properties"]:
            patterns[rf"^{group}\.{key}$"] = {"$ref": f"{reference}/properties/{key}"}
    return {"properties": properties, "patternProperties": patterns, "additionalProperties": False}


def _each(keys: Schema, value: Schema) -> Schema:
    """The same keys, all of one form."""
    return {**keys, "patternProperties": dict.fromkeys(keys["patternProperties"], value)}


def _named(names: Any, own: str | None = None) -> Schema:
    """One of these names, or a user's own."""
    listed: Schema = {"type": "string", "enum": sorted(names)}
    return listed if own is None else {"anyOf": [listed, {"type": "string", "pattern": own}]}


def _keys_of(catalogue: Catalogue) -> dict[str, Schema]:
    """The keys of each shipped plug-in with their schemas."""
    keys = {}
    for name in catalogue.names():
        keys[name] = catalogue.load(name).Config.model_json_schema().get("properties", {})
    return keys


def _part(catalogue: Catalogue, keys: Mapping[str, Schema]) -> Schema:
    """A method or readout: its name, or a mapping with the keys it has; without a name any plug-in's."""
    rules: list[Schema] = []
    for name, of_one in keys.items():
        properties = {key: {"anyOf": [value, _BEFORE]} for key, value in of_one.items()}
        then = {"properties": {"name": {}, **properties}, "additionalProperties": False}
        rules.append({"if": {"required": ["name"], "properties": {"name": {"const": name}}}, "then": then})
    every = ["name", *dict.fromkeys(itertools.chain.from_iterable(keys.values()))]
    unnamed = {"if": {"not": {"required": ["name"]}}, "then": {"propertyNames": {"enum": every}}}
    name = _named(keys, OWN)
    mapping = {"type": "object", "properties": {"name": name}, "allOf": [*rules, unnamed]}
    return {"anyOf": [name, mapping]}


_BEFORE = {"type": "string", "pattern": f"^{BEFORE}"}
"""A campaign's value for a run that comes first."""
SCHEMAS: dict[str, Callable[[], Schema]] = {"job": job_schema, "task": task_schema, "campaign": campaign_schema}
