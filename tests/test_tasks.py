"""Task files: what is shipped loads, and what does not fit is one line that names file and key, before any row is read."""

from __future__ import annotations

import pytest

from raypft.errors import UserError
from raypft.tasks import load_task, task_names

GOOD = """
about: a user's task
kind: choice
fields: {text: text}
label: {names: ["no", "yes"]}
languages: [en, de]
metric: accuracy
sources:
  hub: {hub: owner/name}
  files: {files: {train: mine/train, test: mine/test}}
patterns:
  p1: {text: "{text} . <slot>", verbalizer: {"no": bad, "yes": good}, source: mine}
"""


@pytest.fixture
def load(tmp_path):
    """Load GOOD with one part of it replaced."""

    def load(old: str = "", new: str = ""):
        assert old in GOOD
        path = tmp_path / "mine.yaml"
        path.write_text(GOOD.replace(old, new) if old else GOOD, encoding="utf-8")
        return load_task(str(path))

    return load


@pytest.mark.parametrize("name", task_names())
def test_every_task_of_the_catalogue_loads(name):
    task = load_task(name)
    assert task.name == name
    assert all(pattern.source for pattern in task.patterns.values())


def test_a_users_own_file_loads_by_path_and_is_named_by_its_stem(load):
    task = load()
    assert (task.name, task.pattern("p1").wording("de").mode) == ("mine", "word_initial")


def test_a_language_changes_only_what_its_wording_names(load):
    pattern = load("source: mine}", 'source: mine, by_language: {de: {verbalizer: {"no": schlecht, "yes": gut}}}}').pattern("p1")
    assert pattern.wording("de").verbalizer == {"no": "schlecht", "yes": "gut"}
    assert (pattern.wording("de").text, pattern.wording("en").verbalizer) == (pattern.text, pattern.verbalizer)


def test_an_unknown_task_names_the_nearest():
    known = f"known: {', '.join(task_names())}"
    with pytest.raises(UserError) as caught:
        load_task("xnly")
    assert str(caught.value) == f'task: "xnly" is unknown; did you mean "xnli"? {known}'


def test_an_unknown_pattern_names_the_nearest(load):
    with pytest.raises(UserError) as caught:
        load().pattern("p11")
    assert str(caught.value) == 'task mine: no pattern "p11"; did you mean "p1"? known: p1'


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        load_task(f"{tmp_path}/none.yaml")
    assert str(caught.value) == f"task: no file {tmp_path}/none.yaml; give a task name or a path to a task YAML"


SOURCE_KEYS = "columns, config, files, gated, hub, labels, languages, splits"
PATTERN_KEYS = "by_language, demo_separator, mode, source, text, verbalizer"
TASK_KEYS = "about, fields, kind, label, languages, metric, name, patterns, sources"
ERRORS = {
    "unknown key": ("metric:", "metrics: x\nmetric:", f'unknown key "metrics"; did you mean "metric"? known: {TASK_KEYS}'),
    "unknown key of a pattern": ("source: mine", "sorce: mine, source: mine", f'unknown key "patterns.p1.sorce"; did you mean "source"? known: {PATTERN_KEYS}'),
    "unknown key of a source": ("owner/name", "owner/name, colums: {}", f'unknown key "sources.hub.colums"; did you mean "columns"? known: {SOURCE_KEYS}'),
    "unknown key of a wording": ("source: mine", "source: mine, by_language: {de: {txt: x}}", 'unknown key "patterns.p1.by_language.de.txt"; did you mean "text"? known: mode, text, verbalizer'),
    "missing key": ("metric: accuracy\n", "", 'key "metric" is missing'),
    "word read as a truth value": ('"yes": good', '"yes": Yes', "patterns.p1.verbalizer.yes: found True; input should be a valid string"),
    "number for a label": ('"no", "yes"', '0, "yes"', "label.names.0: found 0; input should be a valid string"),
    "unknown mode": ("source: mine", "source: mine, mode: firstpiece", "patterns.p1.mode: found 'firstpiece'; input should be 'word_initial', 'raw_piece', 'first_piece', 'last_piece' or 'mean'"),
    "unknown metric": ("accuracy", "acuracy", 'metric: "acuracy" is unknown; did you mean "accuracy"? known: accuracy'),
    "no such field": ("{text} .", "{txt} .", 'patterns.p1.text: no field "txt"; did you mean "text"? known: text'),
    "label without a word": ('"no": bad, ', "", "patterns.p1.verbalizer: found ['yes']; expected one entry for each of ['no', 'yes']"),
    "no label words": ('verbalizer: {"no": bad, "yes": good}, ', "", "patterns.p1: a pattern with <slot> needs a verbalizer"),
    "markup": ("<slot>", "<slt>", 'patterns.p1.text: markup not understood in "{text} . <slt>"; known: {field} {field|strip} <slot> <soft> <sep> <demos>'),
    "two slots": ("<slot>", "<slot> <slot>", "patterns.p1.text: found 2 <slot>; expected at most one"),
    "demonstrations in the middle": ("{text} .", "{text} <demos>", "patterns.p1.text: <demos> must come first"),
    "unknown split": ("test: mine/test", "tests: mine/test", 'sources.files: unknown split "tests"; did you mean "test"? known: test, train, validation'),
    "hub and files": ("hub: owner/name", "hub: owner/name, files: {train: x}", "sources.hub: give exactly one of hub and files"),
    "neither hub nor files": ("hub: owner/name", "config: x", "sources.hub: give exactly one of hub and files"),
    "label outside the set": ("hub: owner/name", 'hub: owner/name, labels: {"0": nope}', 'sources.hub.labels.0: "nope" is no label; did you mean "no"? known: no, yes'),
    "unknown language": ("source: mine", "source: mine, by_language: {fr: {}}", 'patterns.p1.by_language: "fr" is no language of the task'),
    "a language's own text": ("source: mine", 'source: mine, by_language: {de: {text: "{txt} <slot>"}}', 'patterns.p1.by_language.de.text: no field "txt"; did you mean "text"? known: text'),
    "a language's own words": ("source: mine", 'source: mine, by_language: {de: {verbalizer: {"no": x}}}', "patterns.p1.by_language.de.verbalizer: found ['no']; expected one entry for each of ['no', 'yes']"),
}  # fmt: skip


@pytest.mark.parametrize("what", ERRORS)
def test_what_does_not_fit_is_one_line_with_file_and_key(load, tmp_path, what):
    old, new, line = ERRORS[what]
    with pytest.raises(UserError) as caught:
        load(old, new)
    assert str(caught.value) == f"{tmp_path}/mine.yaml: {line}"


def test_a_placeholder_that_a_file_name_cannot_have_is_found_when_the_task_is_read(load, tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/mine.yaml: sources.files.files.train: .*{{lang}}"):
        load("mine/train", '"mine/{lang}/train"')


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [", "not readable as YAML: "), ("- a", "expected a mapping of keys, found list"), ("", "expected a mapping of keys, found NoneType")],
)
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text, line):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_task(str(path))
    assert str(caught.value).startswith(f"{path}: {line}")
    assert "\n" not in str(caught.value)
