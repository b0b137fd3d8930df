"""The pages of the reference as Markdown, made from the code: nothing that the code knows is typed again.

python docs/reference.py          # their names and how long they are
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer.main
import yaml
from pydantic import BaseModel
from reference_calls import COMMANDS, exit_codes, of_group, python
from writing import code, inline, prose, table

from raypft.backbones.aliases import ALIASES
from raypft.campaigns.campaign import Campaign
from raypft.campaigns.load import FOLDER as CAMPAIGNS
from raypft.campaigns.load import campaign_names
from raypft.catalogue import Catalogue
from raypft.config.compatibility import matrix
from raypft.config.job import Job, provenance_keys
from raypft.config.load import RECIPES, recipe_names
from raypft.data.sampling import PROTOCOLS
from raypft.methods import METHODS
from raypft.readouts import READOUTS
from raypft.tasks import short_forms
from raypft.tasks.kinds import KINDS
from raypft.tasks.load import load_task, task_names
from raypft.tasks.metrics import METRICS
from raypft.tasks.task import Task

Schema = dict[str, Any]


def pages() -> dict[str, str]:
    """Name of a page to its text."""
    made = {
        "job": ("Job keys", job()),
        "task": ("Task keys", task()),
        "campaign": ("Campaign keys", campaign()),
        "matrix": ("What goes with what", [MATRIX, matrix()]),
        "methods": ("Methods", plug_ins(METHODS)),
        "readouts": ("Readouts", plug_ins(READOUTS)),
        "metrics": ("Metrics and task kinds", metrics()),
        "protocols": ("Protocols", protocols()),
        "tasks": ("Tasks", tasks()),
        "recipes": ("Recipes", recipes()),
        "campaigns": ("Campaigns", campaigns()),
        "backbones": ("Models by name", backbones()),
        "commands": ("Commands", of_group(typer.main.get_command(COMMANDS.app), "raypft")),
        "python": ("Python", python()),
        "exit-codes": ("Exit codes", exit_codes()),
    }
    return {name: "\n\n".join([f"# {title}", *parts]) + "\n" for name, (title, parts) in made.items()}


MATRIX = "Checked when a job is loaded; `raypft list matrix` prints it. Model types: [families](../families.md)."


def type_of(schema: Schema) -> str:
    """What a key takes, of its JSON Schema."""
    if "$ref" in schema:
        return "keys of `" + schema["$ref"].rpartition("/")[2] + "`"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(type_of, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    if schema.get("type") == "object":
        below = schema.get("additionalProperties")
        return f"mapping to {type_of(below)}" if isinstance(below, dict) and below else "mapping"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = "".join(f" {sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema)
    names = {"null": "none", "string": "text", "boolean": "true or false"}
    called = str(schema.get("type", "anything"))
    return names.get(called, called) + limits


def default_of(schema: Schema, required: bool) -> str:
    """What stands where a key is left out."""
    if required:
        return "must be given"
    value = schema.get("default")
    if value is None:
        return "none" if "default" in schema else ""
    return (
        ""
        if isinstance(value, dict) and "$ref" in schema
        else inline(yaml.safe_dump(value, default_flow_style=True).split("\n")[0])
    )


def keys(model: type[BaseModel], provenance: set[str] | None = None, prefix: str = "") -> str:
    """The keys of a model; with `provenance`, whether each decides numbers."""
    made, rows = model.model_json_schema(), []
    for name, schema in made["properties"].items():
        field = model.model_fields[name]
        about = prose(field.description).replace("None:", "none:")
        if provenance is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            about = f"[the keys below](#{name})"
        in_key = [] if provenance is None else ["no" if {prefix + name, prefix.rstrip(".")} & provenance else "yes"]
        rows.append([inline(prefix + name), type_of(schema), default_of(schema, field.is_required()), *in_key, about])
    if not any(row[-1] for row in rows):  # its keys are told by its docstring
        return table(["key", "takes", "default"], [row[:-1] for row in rows])
    return table(["key", "takes", "default", *([] if provenance is None else ["in the cell key"]), ""], rows)


def job() -> Iterator[str]:
    """Every key of a job file and of an override."""
    provenance = set(provenance_keys())
    yield prose(Job.__doc__)
    yield (
        "A file may begin `from:` a recipe or another file; its keys are laid over that one's. In a command keys are "
        "dotted: `train.lr=1e-4`. A key that is in the cell key decides numbers: another value is another cell. "
        "[JSON Schema](../commands.md#files-and-editors) for editors: `raypft list schema job`."
    )
    yield keys(Job, provenance)
    for name, field in Job.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            yield f"## {name}\n\n{prose(group.__doc__)}"
            yield keys(group, provenance, f"{name}.")
    yield "## method and readout\n\nTheir keys: [methods](methods.md), [readouts](readouts.md)."


def models_below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models that stand below one, each once."""
    seen: dict[str, type[BaseModel]] = {}
    waiting: list[Any] = [field.annotation for field in model.model_fields.values()]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one.__name__ not in seen:
                seen[one.__name__] = one
                waiting += [field.annotation for field in one.model_fields.values()]
        else:
            waiting += getattr(one, "__args__", ())
    yield from seen.values()


def task() -> Iterator[str]:
    """Every key of a task's file, and its short forms."""
    yield prose(inspect.getmodule(Task).__doc__)
    yield "`raypft list schema task` prints its JSON Schema. An example: [your data](../tutorials/your-data.md)."
    yield keys(Task)
    for model in models_below(Task):
        yield f"## {model.__name__}\n\n{prose(model.__doc__)}"
        yield keys(model)
    first, forms, rest = inspect.cleandoc(short_forms.__doc__ or "").split("\n\n")
    yield f"## Short forms\n\n{first}"
    yield code(inspect.cleandoc(forms), "text")
    yield rest


def campaign() -> Iterator[str]:
    """Every key of a campaign's file."""
    yield prose(inspect.getmodule(Campaign).__doc__)
    yield (
        "`scales:` holds named overlays, of which `scale=NAME` takes one. `raypft list schema campaign` prints the "
        "JSON Schema. How it runs: [campaigns and searches](../campaigns.md)."
    )
    yield keys(Campaign)
    for model in models_below(Campaign):
        yield f"## {model.__name__}\n\n{prose(model.__doc__)}"
        yield keys(model)


def plug_ins(catalogue: Catalogue) -> Iterator[str]:
    """Each method or readout: what its file says, and its keys."""
    part = catalogue.part
    yield f"`{part}=NAME` names one, `{part}.KEY=VALUE` sets a key. All keys are part of the cell key."
    for name in catalogue.names():
        plug_in = catalogue.load(name)
        about, _, formula = inspect.cleandoc(inspect.getmodule(plug_in).__doc__ or "").partition("\n\n")
        yield f"## {name}\n\n{prose(about)}"
        if formula:
            yield code(formula, "text")
        yield f"Families: {', '.join(plug_in.families)}. Task kinds: {', '.join(plug_in.kinds)}."
        if plug_in.Config.model_fields:
            yield f"Keys. {prose(plug_in.Config.__doc__)}"
            yield keys(plug_in.Config)


def metrics() -> Iterator[str]:
    """Metrics, and which a kind of task has."""
    yield "Percent, from 0 to 100. A function of your own: [your method](../tutorials/your-method.md#a-metric)."
    rows = [
        [inline(name), f"{version}", prose((function.__doc__ or "").split("\n\n")[0])]
        for name, (version, function) in METRICS.items()
    ]
    yield table(["metric", "version", ""], rows)
    yield "## Task kinds"
    kinds = []
    for name, kind in KINDS.items():
        own = f"; fields {', '.join(kind.fields)}" if kind.fields else ""
        kinds.append([inline(name), prose(type(kind).__doc__) + own, ", ".join(map(inline, kind.metrics))])
    yield table(["kind", "", "metrics"], kinds)


def protocols() -> Iterator[str]:
    """Which rows train, select and test."""
    yield "`protocol=NAME`. What each decides is explained in [concepts](../concepts.md#protocol)."
    rows = []
    for name, rule in PROTOCOLS.items():
        drawn = "each seed its own" if rule.sample_per_seed else "one for all seeds"
        rows.append(
            [inline(name), rule.about, inline(rule.dev), drawn, str(rule.dev_limit or ""), str(rule.test_limit or "")]
        )
    yield table(["protocol", "", "dev rows", "rows are drawn", "dev at most", "test at most"], rows)


def tasks() -> Iterator[str]:
    """The tasks that are shipped."""
    yield "`task=NAME`. Rows come from the hub, from `data.root=FOLDER`, or are bundled: [data](../data.md)."
    for name in task_names():
        one = load_task(name)
        labels = f" Labels: {', '.join(one.label.names)}." if one.label.names else ""
        languages = (
            f"{len(one.languages)} languages: {', '.join(one.languages)}"
            if len(one.languages) > 1
            else one.languages[0]
        )
        yield f"## {name}\n\n{one.about}. Kind {one.kind}; {languages}.{labels} Metrics: {', '.join(one.metrics)}."
        sources = [[inline(source), str(found.hub or ""), found.gated or ""] for source, found in one.sources.items()]
        yield table(["source", "data set on the hub", "access"], sources)
        rows = [
            [inline(pattern), inline(found.text.replace("\n", "⏎")), found.source]
            for pattern, found in one.patterns.items()
        ]
        if rows:
            yield table(["pattern", "asks", "after"], rows)


def recipes() -> Iterator[str]:
    """The recipes that are shipped, as they stand in their files."""
    yield "`raypft run NAME task=… backbone=…`. Each is a row of a paper: method, pattern, readout and settings."
    for name in recipe_names():
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        source = yaml.safe_load(text)["source"]
        yield f"## {name}\n\n{source}"
        yield code(text, "yaml")


def campaigns() -> Iterator[str]:
    """The campaigns that are shipped."""
    yield "`raypft plan NAME` says what one needs, `raypft tune NAME` runs it, `scale=NAME` takes a smaller form of it."
    rows = []
    for name in campaign_names():
        values = yaml.safe_load((CAMPAIGNS / f"{name}.yaml").read_text(encoding="utf-8"))
        scales = ", ".join(map(inline, values.get("scales", {})))
        rows.append([inline(name), values["about"], values.get("source", ""), ", ".join(values["rows"]), scales])
    yield table(["campaign", "", "source", "rows", "scales"], rows)


def backbones() -> Iterator[str]:
    """The models that have a short name."""
    yield "`backbone=NAME`; a folder, a `.gguf` file or any model of the hub do as well: [models](../models.md)."
    rows = []
    for name, alias in ALIASES.items():
        rows.append([inline(name), inline(alias.hub), alias.about + (" (gated)" if alias.gated else "")])
    yield table(["name", "on the hub", ""], rows)


if __name__ == "__main__":
    for called, page in pages().items():
        print(f"{called}: {len(page.splitlines())} lines")
