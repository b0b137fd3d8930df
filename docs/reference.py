"""The pages of the reference as Markdown, made from the code: nothing that the code knows is typed again.

python docs/reference.py          # their names and how long they are
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main
import yaml
from pydantic import BaseModel

import raypft
from raypft.analysis.base import Analysis
from raypft.backbones.aliases import ALIASES
from raypft.campaigns.campaign import Campaign
from raypft.campaigns.load import FOLDER as CAMPAIGNS
from raypft.campaigns.load import campaign_names
from raypft.campaigns.results import CampaignResults
from raypft.catalogue import Catalogue
from raypft.config.compatibility import matrix
from raypft.config.job import Job, provenance_keys
from raypft.config.load import RECIPES, recipe_names
from raypft.data.sampling import PROTOCOLS
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.readouts import READOUTS
from raypft.runs.predict import Trained
from raypft.runs.results import RunResults
from raypft.tasks import short_forms
from raypft.tasks.kinds import KINDS
from raypft.tasks.load import load_task, task_names
from raypft.tasks.metrics import METRICS
from raypft.tasks.task import Task

COMMANDS = importlib.import_module("raypft.cli.app")
CODED = ("raypft.cluster.client", "raypft.cluster.check.preflight", "raypft.scale.resources")
"""Where errors with an exit code of their own are."""
CLUSTERS = Path(__file__).parents[1] / "cluster" / "README.md"
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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar in a cell would end it."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {line} |" for line in lines)])


def code(text: object, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{str(text).strip()}\n```"


def inline(value: object) -> str:
    """A value as code, nothing for no value."""
    return f"`{value}`" if str(value) else ""


def prose(text: str | None) -> str:
    """A docstring's text: what looks like a tag is none."""
    return re.sub(r"<(?=[\w/])", "&lt;", inspect.cleandoc(text or ""))


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
    return names.get(schema.get("type", "anything"), schema.get("type", "anything")) + limits


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


def of_group(command: Any, path: str) -> Iterator[str]:
    """A command's help, and that of the commands below it."""
    if hasattr(command, "commands"):
        yield prose(command.help)
        yield from options(command)
        for name in sorted(command.commands):
            below = command.commands[name]
            if not below.hidden:
                yield f"{'#' * len(f'{path} {name}'.split())} {path} {name}"
                yield from of_group(below, f"{path} {name}")
        return
    arguments = [param.metavar or param.name.upper() for param in command.params if param.param_type_name == "argument"]
    yield code(" ".join([path, "[OPTIONS]" if len(command.params) > len(arguments) else "", *arguments]), "text")
    yield prose(command.help)
    yield from options(command)


def options(command: Any) -> Iterator[str]:
    """The table of what a command takes."""
    rows = []
    for param in command.params:
        names = (
            param.opts + param.secondary_opts if param.param_type_name == "option" else [param.metavar or param.name]
        )
        value = param.metavar if param.param_type_name == "option" and param.metavar else ""
        rows.append([", ".join(inline(f"{name} {value}".strip()) for name in names), prose(getattr(param, "help", ""))])
    if rows:
        yield table(["", ""], rows)


def python() -> Iterator[str]:
    """The Python API, from its docstrings; the examples are those that a test runs."""
    _, _, rest = inspect.cleandoc(raypft.__doc__ or "").rpartition("\n\n")
    yield f"{rest} In the examples `MODEL` is a model's folder or name."
    for name in raypft.__all__:
        function = getattr(raypft, name)
        if inspect.isfunction(function):
            yield f"## raypft.{name}"
            yield code(f"raypft.{name}{signature(function)}", "python")
            yield from documented(function.__doc__)
    for result in (RunResults, Trained, CampaignResults, Analysis):
        yield f"## {result.__name__}\n\n{prose(result.__doc__)}"
        rows = []
        for name, member in vars(result).items():
            if not name.startswith("_") and (isinstance(member, property) or inspect.isfunction(member)):
                shown = name if isinstance(member, property) else f"{name}{signature(member)}".replace("(self, ", "(")
                about = prose((member.__doc__ or "").split("\n\n")[0])
                rows.append([inline(shown.replace("(self)", "()")), about])
        if rows:
            yield table(["", ""], rows)


def signature(function: Any) -> str:
    """A function's arguments, without their types; these are in the code and for type checkers."""
    given = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in given.parameters.values()]
    return str(given.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def documented(text: str | None) -> Iterator[str]:
    """A docstring as Markdown: its arguments and errors as lists, its example as code."""
    for part in inspect.cleandoc(text or "").split("\n\n"):
        head, _, below = part.partition("\n")
        if head in ("Args:", "Raises:"):
            entries = " ".join(inspect.cleandoc(below).split())
            yield f"*{'Arguments' if head == 'Args:' else 'Raises'}*: {prose(entries)}"
        elif part.startswith(">>>"):
            yield code(part, "pycon")
        else:
            yield prose(part)


def exit_codes() -> Iterator[str]:
    """What each exit code means, for scripts."""
    yield prose((COMMANDS.__doc__ or "").split("\n\n")[1])
    yield "Errors with a code of their own, of any command:"
    rows = []
    for member in itertools.chain.from_iterable(vars(importlib.import_module(name)).values() for name in CODED):
        if isinstance(member, type) and issubclass(member, UserError) and "code" in vars(member):
            rows.append((str(member.code), prose(member.__doc__)))
    yield table(["code", "meaning"], [row for row in sorted(set(rows)) if row[0] != str(UserError.code)])
    text = CLUSTERS.read_text(encoding="utf-8")
    yield "## raypft submit"
    yield text[text.index("| code | meaning |") :].split("\n\n")[0]


if __name__ == "__main__":
    for called, page in pages().items():
        print(f"{called}: {len(page.splitlines())} lines")
