"""The command line: run, tune, plan, show, check, contract, list, report, predict, export, submit, cluster.

Exit codes: 0 done, 2 something the user can mend (one line says what), 1 a fault of raypft; those of `submit`:
cluster/README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from raypft.cli.cluster import cluster_app, submit_app
from raypft.cli.progress import CampaignProgress, RunProgress
from raypft.cli.terminal import check_words, quiet, speak_anyhow
from raypft.errors import UserError
from raypft.storage import path_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prompt-based fine-tuning of language models, distributed on Ray.",
)
app.add_typer(cluster_app, name="cluster")
app.add_typer(submit_app, name="submit")
console = Console(markup=False, emoji=False)  # [b] in a path or an answer is no style
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE|FILE... [KEY=VALUE...]",
        help="Recipes or job files, then overrides such as task=sst2 shots=5 train.lr=1e-4.",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", parser=path_of, help="The folder of a finished run.")]
Seed = Annotated[int | None, typer.Option(help="Which seed of the run; the first finished one by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of text.")]


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Names of recipes or files, and overrides."""
    names = [word for word in words if "=" not in word]
    if not names:
        raise UserError(
            "job: name a recipe or a job file, e.g. raypft run gnnavi_gcn task=sst2 backbone=smollm2-135m; "
            "see raypft list recipes"
        )
    return names, [word for word in words if "=" in word]


@app.command()
def run(
    words: Names,
    fresh: Annotated[bool, typer.Option(help="Start over where results or states exist.")] = False,
    as_json: Json = False,
) -> None:
    """Train and test jobs: every seed, then the table of mean and std."""
    from raypft.config.load import load_job  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415  (torch is loaded only where it is needed)
    from raypft.runs.table import run_table  # noqa: PLC0415
    from raypft.scale.run import run_jobs  # noqa: PLC0415

    names, overrides = split_words(words)
    jobs = [load_job(name, overrides) for name in names]
    prepared = [prepare(job) for job in jobs]
    labels = {ready.folder.name: ready.job.recipe for ready in prepared} if len(prepared) > 1 else {}
    for ready in prepared if not as_json else ():
        line = f" {Path(ready.job.task).stem}, {len(ready.job.seeds)} seeds, in {ready.folder}"
        console.print(Text.assemble((ready.job.recipe, "bold"), line), highlight=False, soft_wrap=True)
    with RunProgress(console, as_json, labels) as tell:
        results = run_jobs(prepared, tell, fresh)
    folders = [ready.folder for ready in prepared]
    if not as_json:
        print_table(run_table(folders))
        return
    for folder, of_job in zip(folders, results, strict=True):
        for result in of_job:
            result.pop("losses")
            print(json.dumps({"event": "finished", "folder": str(folder), **result}), flush=True)


Campaigns = Annotated[
    list[str],
    typer.Argument(
        metavar="CAMPAIGN|FILE [scale=NAME] [KEY=VALUE...]",
        help="A campaign of tune_spaces/ or its file, then overrides of its defaults.",
    ),
]


@app.command()
def tune(
    words: Campaigns,
    fresh: Annotated[bool, typer.Option(help="Start over where results or states exist.")] = False,
    as_json: Json = False,
) -> None:
    """Run a campaign, a paper's table or a search, on Ray Tune; finished cells are reused. Then its tables."""
    from raypft.campaigns.load import load_campaign, words_of  # noqa: PLC0415
    from raypft.report.campaign import write_tables  # noqa: PLC0415
    from raypft.scale.tune.run import run_campaign  # noqa: PLC0415  (ray is loaded only where it is used)

    campaign = load_campaign(*words_of(words))
    if not as_json:
        line = f" {campaign.about}\nin {campaign.folder}"
        console.print(Text.assemble((campaign.name, "bold"), line), highlight=False, soft_wrap=True)
    with CampaignProgress(console, as_json) as tell:
        rows = run_campaign(campaign, tell, fresh)
    table = write_tables(campaign, rows, campaign.folder)
    if as_json:
        print(json.dumps({"event": "finished", "folder": str(campaign.folder), "table": str(table)}), flush=True)
    else:
        print(table.read_text(encoding="utf-8"), end="")


@app.command()
def plan(words: Campaigns, as_json: Json = False) -> None:
    """What a campaign would run and need, before anything starts; exit code 0 or 2."""
    from raypft.campaigns.load import open_campaign, words_of  # noqa: PLC0415
    from raypft.scale.tune.plan import planned  # noqa: PLC0415

    campaign, where = open_campaign(*words_of(words))
    print_found(planned(campaign, where), as_json)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...|CAMPAIGN...", parser=path_of, help="Folders of runs of one task, or of campaigns."
        ),
    ],
    as_json: Json = False,
) -> None:
    """The table of one or more runs, as Markdown when not on a terminal; the tables of campaigns, written anew from
    what is finished."""
    from raypft.runs.table import run_table  # noqa: PLC0415

    if (folders[0] / "campaign.yaml").is_file():
        for folder in folders:
            report_campaign(folder, as_json)
        return
    table = run_table(folders)
    if as_json:
        print(json.dumps(vars(table)))
    elif console.is_terminal:
        print_table(table)
    else:
        print(table.markdown(), end="")


def report_campaign(folder: Path, as_json: bool) -> None:
    """Write a campaign's tables from its finished cells and print them."""
    from raypft.campaigns.state import CampaignState, reopened  # noqa: PLC0415
    from raypft.report.campaign import write_tables  # noqa: PLC0415

    campaign = reopened(folder)
    state = CampaignState(campaign, lambda line: print(line, file=sys.stderr))
    table = write_tables(campaign, state.rows(), folder)
    if as_json:
        print(json.dumps({"folder": str(folder), "table": str(table)}))
    else:
        print(table.read_text(encoding="utf-8"), end="")


def print_table(table: Any) -> None:
    """A report table on the terminal."""
    shown = RichTable(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if i == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    for note in table.notes:
        console.print(f"- {note}", highlight=False, style="dim", soft_wrap=True)


def print_found(found: dict[str, Any], as_json: bool) -> None:
    """What was found out: its lines for a person, or all of it as JSON."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        for line in found["lines"]:
            console.print(line, highlight=False, soft_wrap=True)


@app.command()
def check(words: Names, as_json: Json = False) -> None:
    """Everything that can be known before compute is spent; exit code 0 or 2."""
    from raypft.config.load import load_job  # noqa: PLC0415
    from raypft.runs.inspect import checked  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415
    from raypft.scale.run import check_gpus  # noqa: PLC0415

    names, overrides = split_words(words)
    for name in names:
        job = load_job(name, overrides)
        check_gpus(job.job.resources)
        print_found(checked(prepare(job)), as_json)


@app.command()
def show(
    words: Names,
    row: Annotated[str | None, typer.Option(help="Key of the row, language/id; the first test row by default.")] = None,
    as_json: Json = False,
) -> None:
    """One row traced: rendered prompt, tokens with marks, label words and their ids, scores."""
    from raypft.config.load import load_job  # noqa: PLC0415
    from raypft.runs.inspect import traced  # noqa: PLC0415
    from raypft.runs.prepare import prepare  # noqa: PLC0415

    names, overrides = split_words(words)
    for name in names:
        print_found(traced(prepare(load_job(name, overrides)), row), as_json)


@app.command()
def contract(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD|FILE [method.KEY=VALUE...]",
            help="A method of the catalogue, a path.py or package.module with one, then keys of it.",
        ),
    ],
    on: Annotated[
        str | None, typer.Option(help="Tiny models, of bert,xlmr,gpt2,llama,t5,mt5; by default all that it works with.")
    ] = None,
    engines: Annotated[
        bool, typer.Option("--engines", help="Also one loss curve over ZeRO stages, with one process and two.")
    ] = False,
) -> None:
    """Check on tiny models what every method promises, a line a promise; exit code 0 or 2."""
    from raypft.contract.run import conclude, kinds_of, method_of, outcomes  # noqa: PLC0415

    method, options = method_of(words)
    seen = []
    for outcome in outcomes(method, kinds_of(method, on.split(",") if on else None), options, engines):
        seen.append(outcome)
        console.print(str(outcome), highlight=False, soft_wrap=True)
    console.print(conclude(method, seen), highlight=False, soft_wrap=True)


@app.command(name="list")
def list_(
    what: Annotated[
        str | None, typer.Argument(metavar="tasks|methods|readouts|backbones|recipes|matrix|schema")
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="The same as `list matrix`.")] = False,
) -> None:
    """What there is; `matrix`: what goes with what; `schema`: the JSON Schema of a job file for editors."""
    from raypft.cli.catalogues import catalogue  # noqa: PLC0415

    if (what is None) != matrix:
        raise UserError("list: name one catalogue, e.g. raypft list methods, or raypft list --matrix")
    for line in catalogue(what or "matrix"):
        print(line)


@app.command()
def predict(
    folder: Run,
    data: Annotated[str | None, typer.Option(help="A file with the task's columns; labels are not looked at.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="One row: a text, or field=text for each field; words are split at blanks.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Of rows that do not say theirs; the training language by default.")
    ] = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(parser=path_of, help="A .parquet or .jsonl file instead of the terminal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score new rows with a finished run: labels with probabilities, a tag a word, or answer texts."""
    if (data is None) == (not text):
        found = "both --data and --text" if text else "neither --data nor --text"
        raise UserError(f"predict: found {found}; expected rows with --data FILE, or one row with --text")
    from raypft.runs import predict as using  # noqa: PLC0415

    if out is not None:
        using.check_ending(out)
    trained = using.load_trained(folder, seed)
    rows = (
        using.rows_of_file(trained, data, language)
        if data is not None
        else using.rows_of_texts(trained, text or [], language)
    )
    found = using.predict(trained, rows)
    if out is not None:
        using.write(found, out)
        console.print(f"{len(found)} rows in {out}", highlight=False, soft_wrap=True)
    elif as_json or not console.is_terminal:
        for line in using.lines_of(found):
            print(line)
    else:
        print_table(using.shown(trained, found))


@app.command()
def export(
    run: Run,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", parser=path_of, help="A new folder on this machine.")
    ] = None,
    seed: Seed = None,
    to_hub: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="OWNER/NAME",
            help="Also a new, private repository of the Hugging Face hub; the token is HF_TOKEN's or hf auth login's.",
        ),
    ] = None,
) -> None:
    """Write what a run trained as a folder that transformers, peft or safetensors load, with a model card."""
    if folder is None and to_hub is None:
        raise UserError(
            "export: found neither DIR nor --push; expected a new folder, or OWNER/NAME on the hub, or both"
        )
    from raypft.hub import check_upload  # noqa: PLC0415
    from raypft.runs import export as exports  # noqa: PLC0415
    from raypft.runs.predict import load_trained  # noqa: PLC0415

    if to_hub is not None:
        check_upload(to_hub)
        page = exports.push(load_trained(run, seed), to_hub, folder)
        console.print(f"pushed to {page}, which is private", highlight=False, soft_wrap=True)
    elif folder is not None:
        exports.export(load_trained(run, seed), folder)
    if folder is not None:
        console.print(f"written to {folder}; {folder}/README.md says how to load it", highlight=False, soft_wrap=True)


def main(command: Callable[[], None] = app) -> None:
    """Entry point: one line and exit code 2 for what the user can mend."""
    quiet()
    speak_anyhow()
    try:
        check_words()
        command()
    except UserError as error:
        print(f"raypft: {error}", file=sys.stderr)
        raise SystemExit(error.code) from None


if __name__ == "__main__":
    main()
