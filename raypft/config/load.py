"""From a recipe or job file with overrides to a ResolvedJob: `load_job("profit", ["task=xnli", "shots=16"])`.

Values are read (`read_values`), validated (`job.Job`) and resolved: names become tasks, classes and their
configurations, once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from raypft.catalogue import is_own, own_name
from raypft.config.job import Job, Resources
from raypft.data.sampling import protocol
from raypft.errors import Faults, UserError, nearest
from raypft.schema import (
    file_of,
    find_yaml,
    flat,
    read_yaml,
    secrets,
    set_key,
    shortened,
    split_override,
    validation_line,
    validation_lines,
    validation_root,
    yaml_names,
)
from raypft.tasks.load import load_task
from raypft.tasks.metrics import check_chunks, metric
from raypft.tasks.task import Pattern, Task

if TYPE_CHECKING:
    from raypft.catalogue import Catalogue
    from raypft.config.resolved import ResolvedJob

RECIPES = Path(__file__).parent / "recipes"
PARTS = ("method", "readout")
USUAL = "usual"
"""What a shipped recipe's pattern is: used where the task has it, see `config.patterns`."""


def recipe_names() -> list[str]:
    """The recipes shipped with raypft."""
    return yaml_names(RECIPES)


def recipe_source(name: str) -> str:
    """The paper and section a shipped recipe comes from."""
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["source"]


def load_job(name: str, overrides: list[str] | None = None) -> ResolvedJob:
    """A recipe or job file with dotted overrides applied, validated, its names looked up.

    Args:
        name: of a recipe, or the path of a job's YAML.
        overrides: `key=value`, keys dotted, such as train.lr=1e-4.

    Raises:
        UserError: unknown recipe (nearest named), missing file, key or value that does not fit (where, found,
        expected).
    """
    return make_job(*read_values(name, overrides))


def load_resources(name: str, overrides: list[str] | None = None) -> Resources:
    """Only what a job asks for, without the rest of its checks, which load torch.

    Raises:
        UserError: as `load_job`, of the resources.
    """
    return resources_of(*read_values(name, overrides))


def read_values(name: str, overrides: list[str] | None = None) -> tuple[dict[str, Any], str]:
    """The values of a recipe or job file with overrides applied, not validated; and the name of the file for messages.

    A user's own method or readout among the overrides becomes part of the recipe's name, which tables and folders show.

    Raises:
        UserError: as `load_values`, and an override that is none.
    """
    values, where = load_values(name)
    before = {key: values.get(key) for key in ("recipe", *PARTS)}
    for override in overrides or []:
        set_key(values, *split_override(override), told=override)
    replaced = [_name_of(values.get(part)) for part in PARTS if _name_of(values.get(part)) != _name_of(before[part])]
    labels = [own_name(name) for name in replaced if is_own(name)]
    if labels and values["recipe"] == before["recipe"]:
        values["recipe"] = "-".join([str(before["recipe"]), *labels])
    return values, where


def _name_of(part: Any) -> str:
    """The name of a method or readout as a job's values give it."""
    return str(part.get("name", "")) if isinstance(part, dict) else str(part)


def load_values(name: str, inside: tuple[Path, ...] = ()) -> tuple[dict[str, Any], str]:
    """What a recipe or job file says, laid over the recipe or file that it begins `from`, dotted keys nested; and how
    messages call it: the file, of a shipped recipe its name, since what does not fit was laid over it.

    Args:
        inside: the files that begin from this one.

    Raises:
        UserError: unknown recipe (nearest named), missing or unreadable file; a file that begins from itself.
    """
    missing = "job: no file {}; give a recipe name or a path to a job YAML"
    path, where = find_yaml(name, RECIPES, "recipe", missing)
    if path in inside:
        raise UserError(f"{where}: from: begins from itself; name a recipe, or a file that does not lead back here")
    values = read_yaml(path, where)
    if file_of(values) == "task":
        raise UserError(f"job: {where} is a task; name a recipe beside it, e.g. raypft run profit task={where}")
    if path.parent == RECIPES:
        return {"recipe": path.stem, **values, "pattern": {USUAL: values["pattern"]}}, path.stem
    laid: dict[str, Any] = {}
    if "from" in values:
        base = values.pop("from")
        if not isinstance(base, str):
            told = "expected the name of a recipe or the path of a job"
            raise UserError(f"{where}: from: found {shortened(base)}; {told}")
        is_file = base.endswith((".yaml", ".yml"))
        laid, _ = load_values(str(path.parent / os.path.expanduser(base)) if is_file else base, (*inside, path))
    try:
        for key, value in flat({"recipe": path.stem, **values}).items():
            set_key(laid, key, value, told=key)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return laid, where


def resources_of(values: dict[str, Any], where: str) -> Resources:
    """What the values of a job ask for.

    Raises:
        UserError: a key or type that does not fit.
    """
    asked = values.get("resources") or {}
    try:
        return Resources(**asked)
    except (ValidationError, TypeError) as error:
        raise UserError(validation_line(f"{where}: resources", error, asked)) from None


def make_job(values: dict[str, Any], where: str = "job") -> ResolvedJob:
    """Validate a job's values and look up the names it uses.

    Raises:
        UserError: what does not fit, with what would, a line each.
    """
    faults = Faults()
    pattern = values.get("pattern")
    usual = pattern.get(USUAL) if isinstance(pattern, dict) and pattern.keys() == {USUAL} else None
    filled = {**values, "pattern": None} if usual else dict(values)
    for key in ("task", "backbone"):
        if key not in filled:
            faults.add([f'{where}: key "{key}" is missing; add {key}=… to the command or the file'])
            filled[key] = ""
    if "method" not in filled:
        recipe = filled.get("recipe")
        begin = f"from: {recipe}" if recipe in recipe_names() else "from: RECIPE"
        faults.add([f'{where}: key "method" is missing; add it, or begin the file with {begin}'])
        filled["method"] = "full"
    faults.add(f"{where}: {line}" for line in secrets(flat(values)))
    job = None
    try:
        job = Job(**filled)
    except (ValidationError, TypeError) as error:
        faults.add(validation_lines(where, error, filled))
    found = _named(values, where, faults)
    faults.tell()
    assert job is not None
    return _checked(_resolved(job, found, usual, where))


def resolve(job: Job, where: str = "job") -> ResolvedJob:
    """Look up the names of a valid job, and whether what they name goes together.

    Raises:
        UserError: what does not fit, with what would, a line each.
    """
    return _checked(look_up(job, where))


def look_up(job: Job, where: str = "job") -> ResolvedJob:
    """Look up the names of a valid job: task, pattern, method, readout, protocol.

    Raises:
        UserError: unknown names, keys that a method or readout does not have, languages that the task does not have, a
        line each.
    """
    faults = Faults()
    found = _named(job.model_dump(include={"task", "method", "readout", "protocol"}), where, faults)
    faults.tell()
    return _resolved(job, found, None, where)


def _checked(resolved: ResolvedJob) -> ResolvedJob:
    from raypft.config.compatibility import check_job  # noqa: PLC0415  (reads the classes, which need torch)

    check_job(resolved)
    return resolved


def _named(values: dict[str, Any], where: str, faults: Faults) -> dict[str, Any]:
    """What a job's values name: task, protocol, class and configuration of method and readout; what is unknown becomes
    a fault, what is no name is left to the job's model."""
    # the classes need torch, which reading values does not
    from raypft.methods import METHODS  # noqa: PLC0415
    from raypft.readouts import READOUTS  # noqa: PLC0415

    found: dict[str, Any] = {}
    for catalogue, usual in ((METHODS, None), (READOUTS, "verbalizer")):
        part = values.get(catalogue.part, usual)
        named = {"name": part} if isinstance(part, str) else part
        if isinstance(named, dict):
            with faults.caught():
                found[catalogue.part] = _part(catalogue, {"name": usual, **named}, where)
    rule, task = values.get("protocol", "fixed"), values.get("task")
    if isinstance(rule, str):
        with faults.caught():
            found["protocol"] = protocol(rule)
    if isinstance(task, str):
        with faults.caught():
            found["task"] = load_task(task)
    return found


def _resolved(job: Job, found: dict[str, Any], usual: str | None, where: str) -> ResolvedJob:
    from raypft.config.patterns import pattern_for  # noqa: PLC0415
    from raypft.config.resolved import ResolvedJob  # noqa: PLC0415

    task, (method, method_config), (readout, readout_config) = found["task"], found["method"], found["readout"]
    if "languages" not in job.train.model_fields_set and len(task.languages) == 1:
        job = job.model_copy(update={"train": job.train.model_copy(update={"languages": list(task.languages)})})
    faults = Faults()
    with faults.caught():
        _check_engine(job)
    with faults.caught():
        _check_languages(job, task, where)
    with faults.caught():
        _check_metric(job.dev.metric, task, where)
    name, pattern = job.pattern, Pattern(text="")
    with faults.caught():
        name = name or pattern_for(task, job, usual, method, method_config, readout)
        pattern = task.pattern(name)
    faults.tell()
    named = {
        "pattern": name,
        "method": {"name": job.method["name"], **method_config.model_dump(exclude_defaults=True)},
        "readout": {"name": job.readout["name"], **readout_config.model_dump(exclude_defaults=True)},
    }
    return ResolvedJob(
        job=job.model_copy(update=named),
        task=task,
        pattern=pattern,
        method=method,
        method_config=method_config,
        readout=readout,
        readout_config=readout_config,
        protocol=found["protocol"],
    )


def _part(catalogue: Catalogue, values: dict[str, Any], where: str) -> tuple[Any, Any]:
    """The class of a method or readout and its validated configuration.

    Raises:
        UserError: unknown name or key.
    """
    keys = dict(values)
    name = keys.pop("name", None)
    part = catalogue.part
    if not isinstance(name, str):
        told = "no name" if name is None else repr(name)
        raise UserError(f"{part}: found {told}; expected {part}: NAME or {part}: {{name: NAME, …}}")
    plug_in = catalogue.load(name)
    if odd := [key for key in keys if not isinstance(key, str)]:
        raise UserError(f"{where}: {part}: found the key {odd[0]!r}, which is no text; expected a name")
    validation_root(plug_in.Config)
    try:
        return plug_in, plug_in.Config(**keys)
    except ValidationError as error:
        raise UserError("\n".join(validation_lines(f"{where}: {part}", error, values))) from None


def _check_languages(job: Job, task: Task, where: str) -> None:
    asked = (("train.languages", job.train.languages), ("test.languages", job.test.languages or []))
    if not job.train.languages:
        raise UserError(f"{where}: train.languages: found none; expected some of {', '.join(task.languages)}")
    for key, languages in asked:
        for language in languages:
            if languages.count(language) > 1:
                raise UserError(f'{where}: {key}: "{language}" stands there twice; keep one of them')
            if language not in task.languages:
                known = nearest(language, task.languages)
                raise UserError(f'{where}: {key}: task {task.name} has no language "{language}"; {known}')


def _check_metric(name: str | None, task: Task, where: str) -> None:
    if name is None:
        return
    try:
        metric(name, {*task.kind.metrics, *task.metrics})
        if name == "entity_f1":
            check_chunks(task.label.names)
    except UserError as error:
        raise UserError(f"{where}: dev.{error}") from None


def _check_engine(job: Job) -> None:
    """Precision, ZeRO stage and workers must go together: nothing is ignored silently."""
    zero, precision, resources = job.zero, job.train.precision, job.resources
    if (resources.min_workers or 0) > resources.workers:
        raise UserError(
            f"resources.min_workers: found {resources.min_workers} with workers {resources.workers}; "
            "expected at most as many"
        )
    if resources.workers == 0 and resources.data_label:
        raise UserError(
            "resources.data_label: found a label without workers; rows are read in this process then; "
            "leave it out, or set resources.workers"
        )
    if resources.workers == 0 and (zero.stage or zero.offload):
        raise UserError(
            f"zero: found stage {zero.stage}, offload {zero.offload} without workers; "
            "set resources.workers=1 or more, or leave zero out"
        )
    if resources.workers == 0 and precision == "fp16":
        raise UserError(
            "train.precision: found fp16 without workers; use bf16, or resources.workers=1 or more "
            "(DeepSpeed scales the loss)"
        )
    if precision == "fp16" and not resources.gpus_per_worker:
        raise UserError(
            "train.precision: found fp16 with workers that have no GPU, which can't compute in it; use bf16, or "
            "resources.gpus_per_worker=1"
        )
    if zero.offload and zero.stage == 0:
        raise UserError(
            "zero.offload: found true with zero.stage 0, which has nothing to offload; use zero.stage=1, 2 or 3"
        )
