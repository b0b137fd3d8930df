"""Every data set that the catalogue names, laid out as its page on the hub says, is read by the task's own words: the
right split and language, the right labels, and no file more."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import yaml

from raypft.data.origin import choose
from raypft.data.sources import languages_of, read_split
from raypft.tasks.load import load_task, task_names
from raypft.tasks.task import SPLITS

ALL = ("train", "validation", "test")
PARQUET = "{config}/{split}-00000-of-00001.parquet"
CONVERTED = "{config}/{split}/0000.parquet"
NLI = ["entailment", "neutral", "contradiction"]
NER = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
POS = ["ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ"]
POS += ["SYM", "VERB", "X"]
XNLI = ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]
INDIGENOUS = ["aym", "bzd", "cni", "gn", "hch", "nah", "oto", "quy", "shp", "tar"]
ROWS = 2


@dataclass
class Repository:
    """A data set: configurations, splits and the path of a split's file in them; columns: theirs to what they hold.

    card: whether its README names the configurations; beside: other files.
    """

    configs: list[str]
    columns: list[str]
    splits: tuple[str, ...] = ALL
    path: str = PARQUET
    revision: str = "main"
    card: bool = True
    beside: dict[str, bytes] = field(default_factory=dict)


STARS = ["en", "de", "es", "fr", "ja", "zh"]
XTREME = ["SQuAD", "tydiqa", "XQuAD.en", "XQuAD.th", "MLQA.en.en", "MLQA.en.de", "MLQA.de.de"]
REPOSITORIES = {
    "fancyzhx/ag_news": Repository(["data"], ["text", "label"], ("train", "test")),
    "fancyzhx/amazon_polarity": Repository(["amazon_polarity"], ["label", "title", "content"], ("train", "test")),
    "mteb/AmazonReviewsClassification": Repository(STARS, ["text", "label", "label_text"]),
    "mteb/amazon_reviews_multi": Repository(
        STARS,
        ["id", "text", "label", "label_text"],
        path="{config}/{split}.jsonl",
        card=False,
        beside={"amazon_reviews_multi.py": b"import datasets"},
    ),
    "facebook/xnli": Repository(["all_languages", *XNLI], ["premise", "hypothesis", "label"]),
    "nala-cub/americas_nli": Repository(
        ["all_languages", *INDIGENOUS], ["premise", "hypothesis", "label"], ("validation", "test")
    ),
    "SetFit/CR": Repository([""], ["text", "label", "label_text"], ("train", "test"), "{split}.jsonl", card=False),
    "SemEvalWorkshop/emo": Repository(
        ["emo2019"], ["text", "label"], ("train", "test"), CONVERTED, "refs/convert/parquet", card=False
    ),
    "Davlan/sib200": Repository(
        ["eng_Latn", "swh_Latn", "nqo_Nkoo"],
        ["index_id", "category", "text"],
        path=CONVERTED,
        revision="refs/convert/parquet",
        card=False,
    ),
    "stanfordnlp/sst2": Repository(["data"], ["idx", "sentence", "label"]),
    "CogComp/trec": Repository(
        ["default"],
        ["text", "coarse_label", "fine_label"],
        ("train", "test"),
        CONVERTED,
        "refs/convert/parquet",
        card=False,
    ),
    "google-research-datasets/paws-x": Repository(
        ["de", "en", "es", "fr", "ja", "ko", "zh"], ["id", "sentence1", "sentence2", "label"]
    ),
    "unimelb-nlp/wikiann": Repository(["ace", "de", "en", "zh-yue"], ["tokens", "ner_tags", "langs", "spans"]),
    "google/xtreme": Repository(
        [*XTREME, "udpos.English", "udpos.German", "PAN-X.en"], ["id", "title", "context", "question", "answers"]
    ),
}


@dataclass
class Case:
    """How a task reads data sets.

    languages: some to try, `train` where train and validation rows are in others; splits: each one's data set,
    configuration by language and split there; fields: their columns, as ours; labels: in their order; id: their column;
    names: their languages.
    """

    languages: list[str]
    splits: Mapping[str, tuple[str, str, str]]
    fields: dict[str, str]
    labels: list[str]
    id: str | None = None
    train: list[str] | None = None
    names: dict[str, str] = field(default_factory=dict)


def of(name: str, config: str, splits: tuple[str, ...] = ALL) -> dict[str, tuple[str, str, str]]:
    """Splits that are called as ours, all in one data set."""
    return {split: (name, config, split) for split in splits}


SQUAD = {"context": "context", "question": "question"}
CASES = {
    ("agnews", "hub"): Case(
        ["en"],
        of("fancyzhx/ag_news", "data", ("train", "test")),
        {"text": "text"},
        ["World", "Sports", "Business", "Sci/Tech"],
    ),
    ("amazon", "hub"): Case(
        ["en", "zh"], of("mteb/AmazonReviewsClassification", "{}"), {"text": "review_body"}, list("12345")
    ),
    ("amazon", "hub_json"): Case(
        ["en", "zh"], of("mteb/amazon_reviews_multi", "{}"), {"text": "review_body"}, list("12345"), "id"
    ),
    ("amazon_polarity", "hub"): Case(
        ["en"],
        of("fancyzhx/amazon_polarity", "amazon_polarity", ("train", "test")),
        {"content": "content"},
        ["negative", "positive"],
    ),
    ("americasnli", "hub"): Case(
        ["quy", "aym"],
        {
            "train": ("facebook/xnli", "{}", "train"),
            "validation": ("facebook/xnli", "{}", "validation"),
            "test": ("nala-cub/americas_nli", "{}", "test"),
        },
        {"premise": "premise", "hypothesis": "hypothesis"},
        NLI,
        train=["en", "es"],
    ),
    ("cr", "hub"): Case(["en"], of("SetFit/CR", "", ("train", "test")), {"text": "text"}, ["negative", "positive"]),
    ("emoc", "hub"): Case(
        ["en"],
        of("SemEvalWorkshop/emo", "emo2019", ("train", "test")),
        {"text": "text"},
        ["others", "happy", "sad", "angry"],
    ),
    ("mlqa", "hub"): Case(
        ["en", "de"],
        {
            "train": ("google/xtreme", "SQuAD", "train"),
            "validation": ("google/xtreme", "SQuAD", "validation"),
            "test": ("google/xtreme", "MLQA.{0}.{0}", "test"),
        },
        SQUAD,
        [],
        "id",
        ["en"],
    ),
    ("panx", "hub"): Case(["en", "de"], of("unimelb-nlp/wikiann", "{}"), {"tokens": "tokens"}, NER),
    ("pawsx", "hub"): Case(
        ["en", "ko"],
        of("google-research-datasets/paws-x", "{}"),
        {"sentence1": "premise", "sentence2": "hypothesis"},
        ["0", "1"],
        "id",
    ),
    ("sib200", "hub"): Case(
        ["eng_Latn", "swh_Latn"],
        of("Davlan/sib200", "{}"),
        {"text": "text"},
        ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"],
        "index_id",
    ),
    ("sst2", "hub"): Case(
        ["en"],
        {"train": ("stanfordnlp/sst2", "data", "train"), "test": ("stanfordnlp/sst2", "data", "validation")},
        {"sentence": "text"},
        ["negative", "positive"],
        "idx",
    ),
    ("trec", "hub"): Case(
        ["en"],
        of("CogComp/trec", "default", ("train", "test")),
        {"text": "text"},
        ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"],
    ),
    ("tydiqa", "hub"): Case(
        ["en", "sw"],
        {"train": ("google/xtreme", "tydiqa", "train"), "test": ("google/xtreme", "tydiqa", "validation")},
        SQUAD,
        [],
        "id",
    ),
    ("udpos", "hub"): Case(
        ["en", "de"],
        of("google/xtreme", "udpos.{}"),
        {"tokens": "tokens"},
        POS,
        names={"en": "English", "de": "German"},
    ),
    ("xnli", "hub"): Case(XNLI, of("facebook/xnli", "{}"), {"premise": "premise", "hypothesis": "hypothesis"}, NLI),
    ("xquad", "hub"): Case(
        ["en", "th"],
        {
            "train": ("google/xtreme", "SQuAD", "train"),
            "validation": ("google/xtreme", "SQuAD", "validation"),
            "test": ("google/xtreme", "XQuAD.{}", "validation"),
        },
        SQUAD,
        [],
        "id",
        ["en"],
    ),
}
SPOKEN = ["english", "swahili"]


def cell(column: str, config: str, split: str, row: int, labels: int) -> Any:
    """What a file holds in a column of a row."""
    if column in ("label", "coarse_label"):
        return (row + 1) % labels
    if column == "category":
        return ["geography", "travel"][row]
    if column in ("ner_tags", "pos_tags"):
        return [row, row + 1, labels - 1]
    if column == "tokens":
        return [config, split, f"row {row}"]
    if column == "answers":
        return {"text": [f"row {row}"], "answer_start": [len(f"{config} {split} context ")]}
    if column == "id" and config == "tydiqa":
        return f"{SPOKEN[row]}-{split}-{row}"
    if column == "idx":
        return row
    return f"{config} {split} {column} row {row}"


def content(repository: Repository, config: str, split: str, labels: int) -> bytes:
    """A file of two rows."""
    columns = ["tokens", "pos_tags"] if config.startswith("udpos.") else repository.columns
    rows = [{name: cell(name, config, split, row, labels) for name in columns} for row in range(ROWS)]
    table = pa.Table.from_pylist(rows)
    if repository.path.endswith("jsonl"):
        return "".join(f"{line}\n" for line in map(json.dumps, rows)).encode()
    stream = io.BytesIO()
    pa_parquet.write_table(table, stream)
    return stream.getvalue()


def serve(hub: Any, name: str, labels: int) -> None:
    """Put a data set on the hub."""
    repository = REPOSITORIES[name]
    files = {
        repository.path.format(config=config, split=split): content(repository, config, split, labels)
        for config, split in itertools.product(repository.configs, repository.splits)
    }
    files |= repository.beside
    if repository.card:
        configs = []
        for config in repository.configs:
            paths = [{"split": split, "path": f"{config}/{split}-*"} for split in repository.splits]
            configs.append({"config_name": "default" if config == "data" else config, "data_files": paths})
        files["README.md"] = f"---\n{yaml.safe_dump({'configs': configs})}---\n# {name}\n".encode()
    if repository.revision != "main":
        script = {"README.md": b"# it has a script\n", f"{name.split('/')[1]}.py": b"import datasets"}
        hub.add(name, script, kind="datasets")
    hub.add(name, files, revision=repository.revision, kind="datasets")


def expected(case: Case, task: Any, split: str, languages: list[str]) -> list[dict[str, Any]]:
    """The rows of a split, without the ids of sources that have none."""
    _, config, theirs = case.splits[split]
    rows = []
    for language in languages:
        there = config.format(case.names.get(language, language))
        for row in range(ROWS):
            told = {our: cell(their, there, theirs, row, 0) for their, our in case.fields.items()}
            if task.kind.name == "tags":
                label = [case.labels[number] for number in (row, row + 1, len(case.labels) - 1)]
            elif task.kind.name == "span":
                label = [f"row {row}"]
                told["starts"] = cell("answers", there, theirs, row, 0)["answer_start"]
            elif task.name == "sib200":
                label = cell("category", there, theirs, row, 0)
            else:
                label = case.labels[(row + 1) % len(case.labels)]
            if case.id is not None:
                told["id"] = str(cell(case.id, there, theirs, row, 0))
            rows.append({**told, "language": language, "label": label})
    if config == "tydiqa":  # one file of all languages, the id says which
        rows = [row for row in rows if row["id"].startswith({"en": "english", "sw": "swahili"}[row["language"]])]
    return rows


def test_every_data_set_of_the_catalogue_is_tried():
    named = set()
    for task in map(load_task, task_names()):
        named |= {(task.name, name) for name, source in task.sources.items() if source.hub is not None}
    assert named == set(CASES)
    assert {name for case in CASES.values() for name, _, _ in case.splits.values()} == set(REPOSITORIES)


@pytest.mark.parametrize(("name", "source"), CASES, ids=map("-".join, CASES))
def test_a_data_set_of_the_catalogue_is_read_and_no_file_more(hub_here, name, source):
    case, task = CASES[name, source], load_task(name)
    for repository in {dataset for dataset, _, _ in case.splits.values()}:
        serve(hub_here, repository, len(case.labels) or 5)
    origin = choose(task, source, None)
    assert source == "hub_json" or choose(task, None, None).name == source
    for split in SPLITS:
        languages = case.train if split != "test" and case.train else case.languages
        before = len(hub_here.fetched())
        table = read_split(origin, split, languages)
        if split not in case.splits:
            assert table is None
            continue
        assert table is not None
        rows = table.to_pylist()
        told = expected(case, task, split, languages)
        assert [{key: row[key] for key in told[0]} for row in rows] == told
        dataset, config, theirs = case.splits[split]
        path = REPOSITORIES[dataset].path
        there = {config.format(case.names.get(language, language)) for language in languages}
        files = {path.format(config=one, split=theirs) for one in there}
        assert set(hub_here.fetched()[before:]) - {"README.md"} == files
    assert set(case.languages) <= set(languages_of(origin, "test"))


def test_translations_are_drawn_together(hub_here):
    """XNLI has no ids: a row is known by its number, as its languages are parallel."""
    serve(hub_here, "facebook/xnli", 3)
    table = read_split(choose(load_task("xnli"), "hub", None), "test", ["en", "sw"])
    assert table is not None
    assert table.select(["language", "id"]).to_pylist() == [
        {"language": language, "id": number} for language in ("en", "sw") for number in ("0", "1")
    ]
