"""What a language's score goes with: how its texts are cut into subwords, its script, its distances from the pivot
language that the user gives.

Source: Rust et al. 2021 (How Good is Your Tokenizer?), section 3.2, for fertility, subwords a word; Petrov et al. 2023
(Language Model Tokenizers Introduce Unfairness Between Languages), section 3, for the premium, subwords of a text
beside those of its translation. Scripts that put no blanks between words have no fertility. Correlations over the
languages without the pivot: Spearman's, which asks for the order only, and Pearson's.
"""

from __future__ import annotations

import csv
import itertools
import math
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow.compute as pa_compute
from pydantic import Field
from scipy import stats

from raypft.analysis import base
from raypft.analysis._runs import Run, spread
from raypft.backbones.fetch import pinned
from raypft.backbones.load import load_skeleton
from raypft.errors import UserError, first_line, nearest
from raypft.runs.predict import started_from

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO"}
"""How Unicode calls the letters of scripts that put no blanks between words."""
LEAST = 4
"""Languages below which nothing is correlated."""
CUT = ("fertility", "subwords a character", "premium")
RESERVED = ("run", "trained", "pivot", "score", "gap", "script", *CUT)


class Options(base.Options):
    """rows: texts of each language that are cut; distances: a table that the user gives."""

    rows: int = Field(default=200, ge=1, description="test rows of each language that are cut into subwords, at most")
    distances: str | None = Field(
        default=None, description="a CSV with a column language and columns of numbers, e.g. distances from English"
    )


class Transfer(base.Kind):
    """Scores by language beside subwords, script and distances."""

    Options: ClassVar[type[base.Options]] = Options

    def compute(self, runs: Sequence[Run], options: Any) -> base.Analysis:
        distances = {} if options.distances is None else read_distances(options.distances)
        measures = [*CUT, *next(iter(distances.values()), {})]
        rows: list[base.Row] = []
        for run in runs:
            rows += _rows(run, options, distances)
        found = [_correlated(run.name, measure, rows) for run, measure in itertools.product(runs, measures)]
        pivot = "the gap is the pivot language's score minus the language's, in points"
        few = f"nothing is correlated over fewer than {LEAST} languages; p is of one test, {len(found)} were made"
        return base.Analysis(
            name="transfer",
            title="Transfer by language",
            how="Scores by language, means over seeds, beside fertility (subwords a word of the test texts, Rust et "
            "al. 2021), subwords a character, premium (subwords of a text beside those of its translation, Petrov et "
            "al. 2023), script, and the distances given; correlations over all languages but the pivot.",
            tables={"transfer": rows, "correlations": found},
            figures={"transfer": lambda figure: _draw(figure, rows, measures, found)},
            notes=[pivot, few],
        )


def read_distances(path: str) -> dict[str, dict[str, float | None]]:
    """Language to column to number; None where a cell is empty.

    Raises:
        UserError: no such file, no column language, no other column, a cell that is no number, a language twice.
    """
    where = f"analyse transfer: distances: {path}"
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{where} can't be read: {first_line(error)}; give a CSV file") from None
    if not rows or "language" not in columns or len(set(columns)) < max(2, len(columns)):
        found = ", ".join(columns) or "none"
        raise UserError(
            f"{where} has the columns {found} and {len(rows)} rows; expected language and others, of numbers"
        )
    taken = sorted({*columns} & {*RESERVED})
    if taken:
        raise UserError(f"{where} has a column {taken[0]}, which the table has already; call it otherwise")
    table: dict[str, dict[str, float | None]] = {}
    for number, row in enumerate(rows, 2):
        language, line = row.pop("language"), f"{where} line {number}"
        if language in table:
            raise UserError(f"{line}: {language} stands there twice; keep one of them")
        if None in row or None in row.values():  # csv's word for more, or fewer, cells than the head
            raise UserError(f"{line}: found another number of cells than in the first line, {len(columns)}")
        table[language] = {name: _number(cell, f"{line}: {name}") for name, cell in row.items()}
    return table


def _number(cell: str, where: str) -> float | None:
    if not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f'{where}: found "{cell}"; expected a number, or nothing')
    return value


def script_of(texts: Sequence[str]) -> str:
    """What Unicode calls most letters of texts: LATIN, CYRILLIC, CJK …; empty where there are none."""
    letters = Counter[str]()
    for character in itertools.chain.from_iterable(texts):
        if character.isalpha():
            letters[unicodedata.name(character, "?").split()[0]] += 1
    return letters.most_common(1)[0][0] if letters else ""


@dataclass(frozen=True)
class Texts:
    """What a language's test texts are made of.

    subwords: of each row, by id; words, characters: of all; script: see `script_of`.
    """

    subwords: dict[str, int]
    words: int
    characters: int
    script: str

    def measures(self, pivot: Texts | None) -> base.Row:
        """Script and the numbers of `CUT`, None where there is no such number."""
        total = sum(self.subwords.values())
        spaced = self.script not in UNSPACED and self.words > 0
        parallel = pivot is not None and pivot.subwords.keys() == self.subwords.keys()
        return {
            "script": self.script,
            "fertility": total / self.words if spaced else None,
            "subwords a character": total / self.characters if self.characters else None,
            "premium": total / sum(pivot.subwords.values()) if parallel and pivot else None,
        }


def _rows(run: Run, options: Options, distances: Mapping[str, Mapping[str, float | None]]) -> Iterator[base.Row]:
    """A row a language of a run."""
    first, pivot = run.results[0]["scores"], run.resolved.task.pivot_language
    if distances and not distances.keys() & first.keys():
        told = nearest(next(iter(distances)), first)
        raise UserError(f"analyse transfer: distances: none of its languages is tested in {run.folder}; {told}")
    by_seed = [result["scores"] for result in run.results]
    scores = {name: statistics.fmean(map(itemgetter(name), by_seed)) for name in first}
    texts = _texts(run, options)
    for language, score in scores.items():
        yield {
            "run": run.name,
            "language": language,
            "trained": language in run.job["train"]["languages"],
            "pivot": language == pivot,
            "score": score,
            "gap": scores[pivot] - score if pivot in scores else None,
            **texts[language].measures(texts.get(pivot or "")),
            **{name: distances.get(language, {}).get(name) for name in next(iter(distances.values()), {})},
        }


def _texts(run: Run, options: Options) -> dict[str, Texts]:
    """The test texts of the run's first seed by language, cut by its tokenizer."""
    resolved, result = run.resolved, run.results[0]
    test = run.drawn(result["seed"]).test.sort_by("id")
    with started_from(run.folder):
        text = load_skeleton(pinned(resolved.job.backbone, result["backbone"])).text
    found: dict[str, Texts] = {}
    for language in result["scores"]:
        rows = spread(test.filter(pa_compute.field("language") == language), options.rows).to_pylist()
        said = [_said(row, list(resolved.task.fields.values())) for row in rows]
        subwords = {row["id"]: len(text.tokenize(own)) for row, own in zip(rows, said, strict=True)}
        words, characters = sum(len(own.split()) for own in said), sum(map(len, said))
        found[language] = Texts(subwords, words, characters, script_of(said))
    return found


def _said(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The texts of a row behind each other; words with blanks between."""
    values = [row[column] for column in columns]
    return " ".join(" ".join(value) if isinstance(value, list) else value for value in values)


def _correlated(run: str, measure: str, rows: Sequence[base.Row]) -> base.Row:
    """How the scores of a run's languages, the pivot aside, go with a measure."""
    own = [row for row in rows if row["run"] == run and not row["pivot"] and row[measure] is not None]
    scores, values = [row["score"] for row in own], [row[measure] for row in own]
    about: base.Row = {"run": run, "measure": measure, "languages": len(own)}
    enough = len(own) >= LEAST and len(set(scores)) > 1 and len(set(values)) > 1
    for name, correlate in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        found: Any = correlate(values, scores) if enough else None
        about[name] = float(found.statistic) if enough else None
        about[f"p of {name}"] = float(found.pvalue) if enough else None
    return about


def _draw(figure: Figure, rows: Sequence[base.Row], measures: Sequence[str], found: Sequence[base.Row]) -> None:
    """A panel a measure and run, languages by name, colours by script."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    scripts = list(dict.fromkeys(row["script"] for row in rows))
    shown = [measure for measure in measures if set(map(itemgetter(measure), rows)) != {None}]
    figure.set_size_inches(3.2 * len(shown) + 0.6, 2.9 * len(runs) + 0.5)
    grid = figure.subplots(len(runs), len(shown), squeeze=False, sharex="col", sharey="row")
    by_panel = {(row["run"], row["measure"]): row for row in found}
    for (line, run), (column, measure) in itertools.product(enumerate(runs), enumerate(shown)):
        axes, told = grid[line, column], by_panel[run, measure]
        for row in rows:
            if row["run"] == run and row[measure] is not None:
                color = f"C{scripts.index(row['script']) % 10}"
                axes.plot(row[measure], row["score"], "s" if row["pivot"] else "o", color=color, markersize=4)
                axes.annotate(
                    row["language"], (row[measure], row["score"]), (3, 3), fontsize=6, textcoords="offset points"
                )
        rho = "" if told["spearman"] is None else f", rho {told['spearman']:.2f} (p {told['p of spearman']:.2g})"
        axes.set_title(f"{run}{rho}", fontsize=8)
        axes.grid(alpha=0.3)
        axes.margins(x=0.2)
        axes.set(xlabel=measure if line == len(runs) - 1 else "", ylabel="" if column else "score")
    for number, script in enumerate(scripts):
        grid[0, 0].plot([], [], "o", color=f"C{number % 10}", label=script.lower() or "no letters")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8
    )


Kind = Transfer
