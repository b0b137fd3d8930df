"""raypft: prompt-based fine-tuning of language models, distributed on Ray.

    import raypft

    results = raypft.run("profit", task="xnli", backbone="xlmr-base", shots=16, seeds=3)
    print(results.mean, results.std)
    raypft.load_trained(results.folder).predict(["…"])

What fails for a reason that the user can mend raises `UserError`, one line that says where, what was found, what was
expected and what to do. Importing raypft loads neither torch nor Ray: functions load what they use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypft._version import __version__
from raypft.errors import UserError

if TYPE_CHECKING:
    from raypft.analysis.base import Analysis
    from raypft.campaigns.campaign import Campaign
    from raypft.campaigns.results import CampaignResults
    from raypft.config.resolved import ResolvedJob
    from raypft.runs.predict import Trained
    from raypft.runs.results import RunResults

__all__ = [
    "UserError",
    "__version__",
    "analyse",
    "check",
    "export",
    "load_campaign",
    "load_job",
    "load_trained",
    "read_campaign",
    "read_results",
    "run",
    "tune",
    "write_report",
]

Tell = Callable[[dict[str, Any]], None]


def load_job(name: str, **keys: Any) -> ResolvedJob:
    """A recipe or job file with keys laid over it, validated, its names looked up.

    Args:
        name: of a recipe (`raypft list recipes`), or the path of a job's YAML.
        keys: keys of a job (`raypft list schema`); groups as mappings, or dotted keys by `**{"train.lr": 1e-4}`.

    Raises:
        UserError: unknown recipe or key, or a value that does not fit.

    >>> job = raypft.load_job("profit", task="sentiment", backbone=MODEL, shots=2, train={"epochs": 1}).job
    >>> job.shots, job.train.epochs, job.pattern
    (2, 1, 'profit1')
    """
    from raypft.config.load import load_values, make_job  # noqa: PLC0415

    values, where = load_values(name)
    _lay(values, keys)
    return make_job(values, where)


def check(job: ResolvedJob) -> dict[str, Any]:
    """Everything that can be known before compute is spent: cell keys, folder, the lines that `raypft check` prints.

    Raises:
        UserError: anything that would fail later.

    >>> job = raypft.load_job("profit", task="sentiment", backbone=MODEL, shots=2)
    >>> raypft.check(job)["lines"][-1].startswith("ok: results go to runs")
    True
    """
    from raypft.runs.inspect import checked  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415
    from raypft.scale.machine import check_machine  # noqa: PLC0415

    nodes = check_machine(job.job.resources)
    return checked(prepare(job), nodes)


def run(
    job: str | ResolvedJob, *, fresh: bool = False, tell: Tell | Sequence[Tell] | None = None, **keys: Any
) -> RunResults:
    """Train and test a job: every seed that has no result yet. With `resources={"workers": 2}` on Ray, with
    `tracker="tensorboard"` (or mlflow, wandb) shown there, too.

    Args:
        job: a recipe's name or a job's file, with keys as `load_job` takes them; or what `load_job` gave.
        fresh: start over where results or states exist.
        tell: a function, or several, that hear each event as a mapping with the key "event", as docs/trackers.md
            lists them; one that raises is told of in a warning and hears no more.

    Raises:
        UserError: the job does not fit, or a seed failed.

    >>> results = raypft.run("profit", task="sentiment", backbone=MODEL, shots=2, seeds=2, train={"epochs": 1})
    >>> len(results.seeds), 0 <= results.mean <= 100
    (2, True)
    >>> results.to_arrow().column_names
    ['recipe', 'task', 'seed', 'metric', 'language', 'score']

    >>> def losses(event):
    ...     if event["event"] == "steps":
    ...         print(event["first"], len(event["losses"]), event["lr"])
    >>> keys = dict(task="sentiment", backbone=MODEL, shots=2, seeds=[5], train={"epochs": 1, "lr": 1e-3})
    >>> _ = raypft.run("profit", tell=losses, **keys)
    1 1 [0.001]
    """
    from raypft.runs.callbacks import together  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415
    from raypft.runs.results import read_run  # noqa: PLC0415
    from raypft.scale.run import run_jobs  # noqa: PLC0415

    if not isinstance(job, str) and keys:
        raise UserError(f"run: found {', '.join(keys)} beside a loaded job; give keys to load_job")
    prepared = prepare(load_job(job, **keys) if isinstance(job, str) else job)
    run_jobs([prepared], together(tell), fresh)
    return read_run(prepared.folder)


def read_results(folder: str | Path) -> RunResults:
    """The finished seeds of a run, as they are on disk or in an object store.

    Raises:
        UserError: the folder is no run.

    >>> results = raypft.run("profit", task="sentiment", backbone=MODEL, shots=2, seeds=1, train={"epochs": 1})
    >>> raypft.read_results(results.folder).mean == results.mean
    True
    >>> raypft.read_results(results.folder).predictions().column_names[:5]
    ['seed', 'id', 'language', 'gold', 'answer']
    """
    from raypft.runs.results import read_run  # noqa: PLC0415
    from raypft.storage import path_of  # noqa: PLC0415

    return read_run(path_of(str(folder)))


def load_trained(folder: str | Path, seed: int | None = None, **moved: Any) -> Trained:
    """A finished seed of a run, the first where None, ready to answer new rows.

    Args:
        moved: where what the run was made with lies now: backbone, task, or dotted keys by `**{"method.ticket": …}`.

    Raises:
        UserError: the folder is no run, the seed is not finished, or model, task or method are not those of the run.

    >>> results = raypft.run("profit", task="sentiment", backbone=MODEL, shots=2, seeds=1, train={"epochs": 1})
    >>> answers = raypft.load_trained(results.folder).predict(["a great film", "it was terrible"], language="en")
    >>> answers.column_names
    ['id', 'language', 'answer', 'p(negative)', 'p(positive)']
    """
    from raypft.runs import predict  # noqa: PLC0415

    return predict.load_trained(folder, seed, {key: str(path) for key, path in moved.items()})


def export(trained: Trained, folder: str | Path | None = None, *, push: str | None = None) -> None:
    """Write what a seed trained as a folder that transformers, peft or safetensors load, with a model card.

    Args:
        push: OWNER/NAME of a new, private repository of the hub that it is written to, too; the token is that of
            HF_TOKEN or of `hf auth login`.

    Raises:
        UserError: nothing was trained, the folder or the repository holds something, or no token that may write.

    >>> results = raypft.run("profit", task="sentiment", backbone=MODEL, shots=2, seeds=1, train={"epochs": 1})
    >>> raypft.export(raypft.load_trained(results.folder), "exported")
    >>> sorted(path.name for path in Path("exported").iterdir())[:2]
    ['README.md', 'config.json']
    """
    from raypft.runs import export as exports  # noqa: PLC0415

    place = None if folder is None else Path(folder)
    if push is not None:
        exports.push(trained, push, place)
    elif place is None:
        raise UserError("export: found neither folder nor push; expected one of them, or both")
    else:
        exports.export(trained, place)


def load_campaign(name: str, *, scale: str | None = None, tracker: str | None = None, **keys: Any) -> Campaign:
    """A campaign of tune_spaces/ by name, or from its file; keys are laid over its defaults.

    Args:
        scale: an overlay of the file; tracker: tensorboard, mlflow or wandb; keys: as `load_job` takes them.

    Raises:
        UserError: no such campaign or scale, or a key or value that does not fit.

    >>> campaign = raypft.load_campaign("quickstart", backbone=MODEL, seeds=[0])
    >>> [cell.label for cell in campaign.table_cells()]
    ['ICL sentiment', 'GNNavi sentiment']
    """
    from raypft.campaigns import load  # noqa: PLC0415

    return load.load_campaign(name, keys, scale, tracker)


def tune(
    campaign: str | Campaign, *, fresh: bool = False, tell: Tell | Sequence[Tell] | None = None, **keys: Any
) -> CampaignResults:
    """Run a campaign, a paper's table or a search, on Ray Tune; finished cells are reused. Its tables are written.

    Args:
        campaign: a name or file, with keys as `load_campaign` takes them; or what `load_campaign` gave.
        fresh: start over where results or states exist; tell: hears events, as of `run`.

    Raises:
        UserError: anything that can be known before compute is spent; another process works on the campaign.

    >>> text = "about: two rows\\nrows: {ProFiT: {recipe: profit}, Direct: {recipe: direct}}\\ntasks: [sentiment]"
    >>> _ = Path("mine.yaml").write_text(text)
    >>> found = raypft.tune("mine.yaml", backbone=MODEL, shots=2, seeds=[0], train={"epochs": 1})
    >>> found.to_arrow().select(["row", "status"]).to_pylist()
    [{'row': 'ProFiT', 'status': 'finished'}, {'row': 'Direct', 'status': 'finished'}]
    >>> raypft.read_campaign(found.folder).cells == found.cells
    True
    """
    from raypft.campaigns.results import CampaignResults  # noqa: PLC0415
    from raypft.report.campaign import write_tables  # noqa: PLC0415
    from raypft.runs.callbacks import together  # noqa: PLC0415
    from raypft.scale.tune.run import run_campaign  # noqa: PLC0415

    if not isinstance(campaign, str) and keys:
        raise UserError(f"tune: found {', '.join(keys)} beside a loaded campaign; give keys to load_campaign")
    loaded = load_campaign(campaign, **keys) if isinstance(campaign, str) else campaign
    cells = run_campaign(loaded, together(tell), fresh)
    write_tables(loaded, cells, loaded.folder)
    return CampaignResults(loaded.folder, cells)


def read_campaign(folder: str | Path) -> CampaignResults:
    """What a campaign has found so far; its tables are written anew.

    Raises:
        UserError: the folder is no campaign's.
    """
    from raypft.campaigns.results import CampaignResults  # noqa: PLC0415
    from raypft.campaigns.state import CampaignState, reopened  # noqa: PLC0415
    from raypft.report.campaign import write_tables  # noqa: PLC0415
    from raypft.storage import path_of  # noqa: PLC0415

    campaign = reopened(path_of(str(folder)))
    cells = CampaignState(campaign).rows()
    write_tables(campaign, cells, campaign.folder)
    return CampaignResults(campaign.folder, cells)


def write_report(*folders: str | Path, out: str | Path, mix: bool = False, metric: str | None = None) -> Path:
    """Write a report of runs, or of one campaign, into a folder or behind a URI; returns its page, index.html.

    Args:
        mix: let numbers stand in one table that don't compare, and say so there; metric: the one that leads, instead of
            the task's first.

    Raises:
        UserError: a folder is neither a run nor a campaign, nothing is finished, numbers don't compare, no run has the
            metric, or `out` can't be written.

    >>> results = raypft.run("profit", task="sentiment", backbone=MODEL, shots=2, seeds=2, train={"epochs": 1})
    >>> page = raypft.write_report(results.folder, out="report")
    >>> page.name, (page.parent / "table.csv").is_file()
    ('index.html', True)
    """
    from raypft.campaigns import finished  # noqa: PLC0415
    from raypft.storage import path_of  # noqa: PLC0415

    places = [path_of(str(folder)) for folder in folders]
    return finished.report(places, path_of(str(out)), mix, metric)[0]


def analyse(kind: str, *folders: str | Path, out: str | Path | None = None, **keys: Any) -> Analysis:
    """What finished runs show beside their scores (`raypft list analyses`); it is written beside the first of them.

    Args:
        folders: of runs, or of campaigns, whose shown runs are meant; out: below which folder it is written; keys: of
            the analysis, and where the runs' files lie now (backbone, task, or dotted by `**{"data.root": …}`).

    Raises:
        UserError: an unknown kind or key, a folder that is no run, too few runs or too many, or one that can't be
            looked at so.

    >>> keys = dict(task="sentiment", backbone=MODEL, shots=2, seeds=1, train={"epochs": 1})
    >>> runs = [raypft.run(recipe, **keys).folder for recipe in ("profit", "direct")]
    >>> found = raypft.analyse("errors", *runs)
    >>> found.name, list(found.tables)
    ('errors', ['errors', 'answers', 'rows'])
    """
    from raypft.campaigns import finished  # noqa: PLC0415
    from raypft.storage import path_of  # noqa: PLC0415

    places = [path_of(str(folder)) for folder in folders]
    return finished.analyse(kind, places, keys, None if out is None else path_of(str(out)))[0]


def _lay(values: dict[str, Any], keys: Mapping[str, Any], prefix: str = "") -> None:
    """Put keys, dotted or nested, over a job's values."""
    from raypft.schema import set_key  # noqa: PLC0415

    for key, value in keys.items():
        if isinstance(value, Mapping) and "name" not in value:
            _lay(values, value, f"{prefix}{key}.")
        else:
            set_key(values, f"{prefix}{key}", list(value) if isinstance(value, tuple) else value)
