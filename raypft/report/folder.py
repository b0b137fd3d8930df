"""A report as one folder: the page, the same tables for papers and programs, the figures.

<folder>/index.html    one file that needs no other       table.csv   one line a number
         table.md      every table, with notes            tests.csv   one line a pair of methods and column
         table.tex     the main tables, booktabs          costs.csv   parameters, seconds, memory
         figures/      each as SVG, PNG and data (CSV)
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypft.errors import UserError
from raypft.report.analyses import analyses
from raypft.report.answer_figures import answer_figures
from raypft.report.campaign import COSTS, CSV, Line, axes_of, costs_of, labels_of, lines_of, records_of, score_text
from raypft.report.campaign import table_of as campaign_table
from raypft.report.cards import Cards
from raypft.report.comparing import Compared, Pair, compare, power
from raypft.report.evidence import Evidence
from raypft.report.figures import Drawn, draw
from raypft.report.formats import csv_text, latex
from raypft.report.groups import Cells, Score, text
from raypft.report.layout import Section, sections
from raypft.report.led import led_by
from raypft.report.mixing import Mixing, made
from raypft.report.notes import notes
from raypft.report.page import page
from raypft.report.paper import Paper
from raypft.report.plots import curves
from raypft.report.score_figures import score_figures, shown_in
from raypft.report.search_figures import search_figures
from raypft.report.significance import Interval, interval
from raypft.report.table import Number, Table, plain

INTERVALS = (
    "[low, high]: 95 % interval of the mean: Student's t over seeds and the bootstrap over test rows (2,000 draws, "
    "translations of a row together), combined as independent; over seeds alone where a metric is no mean over rows, "
    "over rows alone where there is one seed; none where all seeds are equal and rows can't be drawn. Where all rows "
    "are alike (all right, say), Clopper and Pearson's limit for so many rows stands for the bootstrap"
)
TESTS = (
    "bold: better than every other row of its column and point by the test. Two methods differ where both the seeds "
    "(paired t test of the seeds' means over languages) and the test rows (McNemar's exact test, or its like for means "
    "over seeds) say so at 5 %, after Holm's correction over pairs and, of single languages, Benjamini and Hochberg's "
    "over languages"
)
MACRO = r"\providecommand{\interval}[2]{ {\scriptsize[#1, #2]}} % make it empty to leave the intervals out"
TESTS_CSV = (
    "table",
    "first",
    "second",
    "column",
    "difference",
    "low",
    "high",
    "p seeds",
    "p rows",
    "p",
    "d",
    "won",
    "of",
)


@dataclass
class Shown:
    """A table of the page. labels: so many of its columns are text; about: a line above it."""

    table: Table
    labels: int
    about: str = ""
    lines: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What stands in a report, before it is written in any format."""

    title: str
    source: str
    scores: list[Shown] = field(default_factory=list)
    tests: list[Shown] = field(default_factory=list)
    paper: list[Shown] = field(default_factory=list)
    costs: list[Shown] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_report(
    campaign: Any,
    rows: Sequence[dict[str, Any]],
    out: Path,
    mix: bool = False,
    metric: str | None = None,
    seen_from: Path | None = None,
) -> list[Path]:
    """Write a report into a folder, which is made; returns its files, the page first.

    Args:
        campaign: a `raypft.campaigns.campaign.Campaign` or `raypft.runs.comparison.Comparison`; rows: one dict a cell,
            see `Cells`; mix: let numbers stand in one table that don't compare, and say so; metric: the one that leads,
            instead of the task's first; seen_from: the folder from which the page's links to runs are seen, `out` where
            None.

    Raises:
        UserError: nothing is finished; numbers don't compare; no run has the metric.
    """
    if not any(row["status"] == "finished" for row in rows):
        raise UserError("report: nothing is finished yet, there is nothing to report; run or tune it first")
    if out.is_file():
        raise UserError(f"report: --out {out} is a file; name a folder")
    mixing = Mixing(mix)
    cells = Cells(campaign, led_by(metric, rows) if metric else rows, mixing)
    cards = Cards(cells, seen_from or out)
    for group in (chosen.best for chosen in cells.chosen.values() if chosen.best.results):
        card = cards.of_group[id(group)]
        for result in group.results.values():
            mixing.add(group.row, made(text(group.task), group.point, result, card.values, card.origin))
    paper = Paper(campaign)
    if metric:
        paper.values = {}  # they are of the task's own
    evidence = Evidence(cells)
    report = Report(campaign.about, campaign.source, mixed=[f"mixed: {line}" for line in mixing.found])
    writer = _Writer(cells, paper, evidence, cards, report)
    gc.freeze()  # statsmodels looks for garbage at each correction
    try:
        writer.fill()
    finally:
        gc.unfreeze()
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures").mkdir(exist_ok=True)
    shown = shown_in(cells)
    asked = [*curves(cells), *score_figures(cells, shown), *search_figures(cells, cards)]
    figures = draw([*asked, *answer_figures(cells, evidence, shown)], out / "figures")
    folders = [out, *([campaign.folder] if hasattr(campaign, "folder") else []), *cards.folders]
    html = page(report, cards, figures, list(analyses(folders)), seen_from or out)
    return _write(report, writer, html, figures, out)


class _Writer:
    """Fills a report's tables."""

    def __init__(self, cells: Cells, paper: Paper, evidence: Evidence, cards: Cards, report: Report) -> None:
        self.cells, self.paper, self.evidence, self.cards, self.report = cells, paper, evidence, cards, report
        self.axes = axes_of(cells)
        self.records: list[list[str]] = []
        self.tested: list[list[str]] = []
        self.tex: list[str] = []
        self.markdown: list[str] = []

    def fill(self) -> None:
        for section in sections(self.cells):
            self._section(section)
        costs = costs_of(self.cells)
        self.report.costs.append(Shown(costs, len(costs.columns) - len(COSTS)))
        told = {card.title: card.rule for card in self.cards if card.rule}
        rules: dict[str, list[str]] = {}
        for title, rule in told.items():
            rules.setdefault(rule, []).append(title)
        everywhere = [f"tested: {rule}: {_few(titles, len(told))}" for rule, titles in rules.items()]
        nonadditive = [f"{name} is no mean over rows: seeds alone" for name in self.evidence.nonadditive]
        self.report.notes = [
            *self.report.mixed,
            *notes(self.cells, self.paper),
            *everywhere,
            INTERVALS,
            *nonadditive,
            "no tests between methods: numbers are mixed" if self.report.mixed else TESTS,
            *self.evidence.lost,
        ]

    def _section(self, section: Section) -> None:
        lines = list(lines_of(section, self.cells, self.paper))
        tested: dict[tuple[Any, ...], Compared] = {}
        if section.main:
            usable = None if self.report.mixed else self.evidence
            for point in dict.fromkeys(line.point for line in lines):
                scores = {line.row: line.scores for line in lines if line.point == point}
                tested[point] = compare(section, point, scores, usable)

        def written(line: Line) -> list[str]:
            best = tested[line.point].best if line.point in tested else [""] * len(line.scores)
            return [self._number(section, line, number, best[number]) for number in range(len(line.scores))]

        beside = campaign_table(section, lines, self.cells, written)
        if self.report.mixed:
            beside.title += " (mixed: see the notes)"
        ours = [row for row in beside.rows if isinstance(row[-1], Number)]
        labels = len(self.axes) + 1
        self.report.scores.append(Shown(Table(beside.title, beside.columns, ours), labels))
        self.markdown.append(beside.markdown())
        if section.main:
            self.tex.append(latex(beside, labels))
            self._tests(section, tested)
            self._paper(section, lines, ours)
        for line, row in zip(lines, ours, strict=True):
            for record, cell in zip(records_of(section, line, self.cells), row[labels:], strict=True):
                assert isinstance(cell, Number)
                limits = [f"{limit:.4f}" for limit in cell.interval] if cell.interval else ["", ""]
                self.records.append([*record, *limits, "yes" if cell.best else ""])

    def _number(self, section: Section, line: Line, number: int, best: str) -> Number:
        """A cell: the score with its interval and the cards of its runs."""
        score, columns = line.scores[number], section.parts[number]
        cell = Number(score_text(score, self.cells.seeds))
        cell.value = score.mean
        cell.best = best == line.row
        found = self._interval(score, None if section.over else self.evidence.parts(line.row, line.point, columns))
        least, most = (-math.inf, math.inf) if section.over else (0.0, 100.0)  # three seeds reach beyond what there is
        cell.interval = (max(found.low, least), min(found.high, most)) if found else None
        places = [(column.task, self.cells.complete(line.point, column.at)) for column in columns]
        chosen = [self.cells.at(line.row, task, point) for task, point in places]
        cell.runs = tuple(dict.fromkeys(self.cards.id_of(one.best) for one in chosen if one is not None))
        return cell

    @staticmethod
    def _interval(score: Score, parts: Any) -> Interval | None:
        return interval(score.values, parts) if score.values and not score.exact else None

    def _tests(self, section: Section, tested: dict[tuple[Any, ...], Compared]) -> None:
        """The table of pairs: of the means over others, or of every column where there are none."""
        summaries = section.summaries
        shown = [name for name, is_mean in zip(section.names, summaries, strict=True) if is_mean or not any(summaries)]
        singles = [name for name in section.names if name not in shown]
        columns = ["first", "second", "of", "difference", "95 % interval", "p over seeds", "p over rows", "p adjusted"]
        columns += ["effect d", "won"] + ["differs in"] * bool(singles)
        table = Table(f"which methods differ: {section.title}", [*self.axes, *columns])
        sizes: list[str] = []
        for point, compared in tested.items():
            numbers = {(pair.first, pair.second, pair.column): pair for pair in compared.pairs}
            for pair in compared.pairs:
                limits = self._limits(section, point, pair) if pair.column in shown else None
                labels = labels_of(self.cells, pair.first, point)
                self.tested.append([*labels, section.title, *_record(pair, limits)])
                if pair.column in shown:
                    each = [numbers.get((pair.first, pair.second, name)) for name in singles]
                    more = [one for one in each if one is not None]
                    told = [one.column for one in more if one.shown]
                    where = [": ".join([f"{len(told)} of {len(more)}", ", ".join(told)]).removesuffix(": ")]
                    where *= bool(singles)
                    table.rows.append([*labels, *_written(pair, limits), *where])
            seeds = [pair.difference.seeds for pair in compared.pairs if pair.column in shown]
            if seeds:
                pairs = sum(pair.column == shown[0] for pair in compared.pairs)
                sizes += [power(min(seeds), pairs)]
        if table.rows:
            self.report.tests.append(Shown(table, len(self.axes) + 3, "; ".join(dict.fromkeys(sizes))))
            self.markdown.append(Table(table.title, table.columns, table.rows, list(dict.fromkeys(sizes))).markdown())

    def _limits(self, section: Section, point: tuple[Any, ...], pair: Pair) -> Interval | None:
        number = section.names.index(pair.column)
        rows = [self.evidence.parts(row, point, section.parts[number]) for row in (pair.first, pair.second)]
        return interval(pair.difference.each, self.evidence.differences(*rows), lowest=-100.0)

    def _paper(self, section: Section, lines: list[Line], ours: list[list[str]]) -> None:
        """The paper's numbers beside ours, one a line."""
        columns = ["row", "column", "paper", "ours", "95 % interval", "in the interval", "verdict", "what differs"]
        table = Table(f"paper and ours: {section.title}", [*self.axes, *columns])
        for line, row in zip(lines, ours, strict=True):
            cells = row[len(self.axes) + 1 :]
            for name, value, verdict, cell in zip(section.names, line.paper, line.verdicts, cells, strict=True):
                if value is None or not isinstance(cell, Number):
                    continue
                limits = cell.interval
                within = "" if limits is None else "yes" if limits[0] <= value <= limits[1] else "no"
                bare = Number(cell)
                bare.value, bare.runs = cell.value, cell.runs
                why = self.paper.differs.get(line.row, "")
                table.rows.append(
                    [*row[: len(self.axes) + 1], name, f"{value:g}", bare, cell.limits, within, verdict, why]
                )
        if table.rows:
            about = "misprints and remarks on the paper are among the notes; where methods differ from the papers' own "
            self.report.paper.append(Shown(table, len(self.axes) + 2, about + "codes: docs/differences.md"))


def _few(titles: list[str], of: int) -> str:
    return "all" if len(titles) == of else ", ".join(titles[:5]) + (f" and {len(titles) - 5} more" * (len(titles) > 5))


def _p(value: float | None) -> str:
    return "" if value is None else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _written(pair: Pair, limits: Interval | None) -> list[str]:
    found = pair.difference
    shown = Number(f"{found.points:+.1f}")
    shown.value, shown.best = found.points, pair.shown
    within = f"[{limits.low:+.1f}, {limits.high:+.1f}]" if limits else ""
    effect = "" if found.effect is None else f"{found.effect:.2f}"
    ps = [_p(found.by_seeds), _p(found.by_rows), _p(pair.p)]
    won = Number(f"{pair.won} of {pair.of}")
    won.value = pair.won
    return [pair.first, pair.second, pair.column, shown, within, *ps, effect, won]


def _record(pair: Pair, limits: Interval | None) -> list[str]:
    found = pair.difference
    numbers = [found.points, limits and limits.low, limits and limits.high, found.by_seeds, found.by_rows, pair.p]
    shown = ["" if number is None else f"{number:.6g}" for number in [*numbers, found.effect]]
    return [pair.first, pair.second, pair.column, *shown, str(pair.won), str(pair.of)]


def _write(report: Report, writer: _Writer, html: str, figures: list[Drawn], out: Path) -> list[Path]:
    """The report's files."""
    cost = report.costs[0]
    head = [f"# {plain(report.title)}\n"] + [f"Source: {plain(report.source)}\n"] * bool(report.source)
    images = [f"![{plain(figure.about)}](figures/{figure.name}.png)\n" for figure in figures]
    listed = [f"- {plain(note)}" for note in report.notes]
    texts = {
        "index.html": html,
        "table.md": "\n".join([*head, *writer.markdown, cost.table.markdown(), *images, *listed]) + "\n",
        "table.tex": "\n".join([MACRO, *writer.tex, latex(cost.table, cost.labels)]),
        "table.csv": csv_text([[*writer.axes, *CSV, "low", "high", "best"], *writer.records]),
        "tests.csv": csv_text([[*writer.axes, *TESTS_CSV], *writer.tested]),
        "costs.csv": csv_text([cost.table.columns, *cost.table.rows]),
    }
    for name, content in texts.items():
        (out / name).write_text(content, encoding="utf-8", newline="")
    pairs = itertools.product(figures, (".png", ".svg", ".csv"))
    drawn = [figure.png.with_suffix(ending) for figure, ending in pairs]
    return [*(out / name for name in texts), *drawn]
