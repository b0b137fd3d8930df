"""Task files: what is shipped loads; what does not fit is one line that names file and key, before any row is read."""

from __future__ import annotations

import pytest

from raypft.errors import UserError
from raypft.tasks.load import load_task, task_names
from raypft.tasks.task import Task

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
    pattern = load(
        "source: mine}", 'source: mine, by_language: {de: {verbalizer: {"no": schlecht, "yes": gut}}}}'
    ).pattern("p1")
    assert pattern.wording("de").verbalizer == {"no": "schlecht", "yes": "gut"}
    assert (pattern.wording("de").text, pattern.wording("en").verbalizer) == (pattern.text, pattern.verbalizer)


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("hub.root", "hub: {hub: owner/name, root: 'https://host/rows?X-Amz-Signature=SECRET'}"),
        ("hub.files.train", "hub: {files: {train: 's3://ME:SECRET@bucket/rows.csv', test: b}}"),
    ],
)
def test_a_key_in_a_uri_is_refused_without_being_told(load, key, new):
    with pytest.raises(UserError) as caught:
        load("hub: {hub: owner/name}", new)
    (line,) = [line for line in str(caught.value).split("\n") if "holds a key" in line]
    assert f"mine.yaml: sources.{key}: " in line
    assert "SECRET" not in str(caught.value)


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


SOURCE_KEYS = (
    "columns, config, files, format, gated, hub, labels, language_before, languages, parallel, revision, root, "
    "split_languages, splits"
)
PATTERN_KEYS = "by_language, demo_separator, mode, source, text, verbalizer"
TASK_KEYS = (
    "about, columns, fields, files, format, kind, label, labels, languages, metric, metrics, name, patterns, pivot, "
    "sources"
)
ERRORS = {
    "unknown key": (
        "metric:",
        "pattern: x\nmetric:",
        f'unknown key "pattern"; did you mean "patterns"? known: {TASK_KEYS}',
    ),
    "unknown key of a pattern": (
        "source: mine",
        "sorce: mine, source: mine",
        f'unknown key "patterns.p1.sorce"; did you mean "source"? known: {PATTERN_KEYS}',
    ),
    "unknown key of a source": (
        "owner/name",
        "owner/name, colums: {}",
        f'unknown key "sources.hub.colums"; did you mean "columns"? known: {SOURCE_KEYS}',
    ),
    "unknown key of a wording": (
        "source: mine",
        "source: mine, by_language: {de: {txt: x}}",
        'unknown key "patterns.p1.by_language.de.txt"; did you mean "text"? known: mode, text, verbalizer',
    ),
    "missing key": ("kind: choice\n", "", 'key "kind" is missing'),
    "word read as a truth value": (
        '"yes": good',
        '"yes": Yes',
        "patterns.p1.verbalizer.yes: found True; input should be a valid string; write it in quotes",
    ),
    "number for a label": (
        '"no", "yes"',
        '0, "yes"',
        "label.names.0: found 0; input should be a valid string; write it in quotes",
    ),
    "no word for a label": (
        '"yes": good',
        '"yes": " "',
        "patterns.p1.verbalizer.yes: found [' ']; expected a word that stands for the label",
    ),
    "an empty list of words for a label": (
        '"yes": good',
        '"yes": []',
        "patterns.p1.verbalizer.yes: found []; expected a word that stands for the label",
    ),
    "no word for a label in a language": (
        "source: mine",
        'source: mine, by_language: {de: {verbalizer: {"no": nein, "yes": ""}}}',
        "patterns.p1.by_language.de.verbalizer.yes: found ['']; expected a word that stands for the label",
    ),
    "unknown mode": (
        "source: mine",
        "source: mine, mode: firstpiece",
        "patterns.p1.mode: found 'firstpiece'; "
        "input should be 'word_initial', 'raw_piece', 'first_piece', 'last_piece' or 'mean'",
    ),
    "unknown metric": ("accuracy", "acuracy", 'metric: "acuracy" is unknown; did you mean "accuracy"? known: accuracy'),
    "metrics without the metric": (
        "metric: accuracy",
        "metric: accuracy\nmetrics: []",
        "metrics: found []; expected accuracy, the metric, first",
    ),
    "metric of another kind": (
        "metric: accuracy",
        "metric: accuracy\nmetrics: [accuracy, f1]",
        'metric: "f1" is unknown; known: accuracy',
    ),
    "unknown kind": (
        "kind: choice",
        "kind: choose",
        "kind: found 'choose'; input should be 'choice', 'tags', 'span', 'text' or 'mlm'",
    ),
    "unknown format": (
        "owner/name",
        "owner/name, format: conll",
        "sources.hub.format: found 'conll'; "
        "input should be 'parquet', 'arrow', 'jsonl', 'tsv', 'csv', 'conllu', 'squad', 'words' or 'panx'",
    ),
    "no label set": (
        'label: {names: ["no", "yes"]}\n',
        "",
        "label.names: found [] for kind choice; expected the label set",
    ),
    "a configuration of an unknown split": (
        "owner/name",
        "owner/name, config: {dev: x}",
        'sources.hub: unknown split "dev"; known: test, train, validation',
    ),
    "languages of an unknown split": (
        "owner/name",
        "owner/name, split_languages: {dev: [en]}",
        'sources.hub: unknown split "dev"; known: test, train, validation',
    ),
    "an unknown language of a split": (
        "owner/name",
        "owner/name, split_languages: {test: [fr]}",
        'sources.hub.split_languages.test: "fr" is no language of the task',
    ),
    "a word where there are none": (
        "{text} .",
        "{text} {token} .",
        "patterns.p1.text: found {token}; only tasks of kind tags ask about a word",
    ),
    "no such field": ("{text} .", "{txt} .", 'patterns.p1.text: no field "txt"; did you mean "text"? known: text'),
    "label without a word": (
        '"no": bad, ',
        "",
        "patterns.p1.verbalizer: found ['yes']; expected one entry for each of ['no', 'yes']",
    ),
    "no label words": (
        '"{text} . <slot>", verbalizer: {"no": bad, "yes": good}, ',
        '"{text}", by_language: {de: {text: "{text} . <slot>"}}, ',
        "patterns.p1.by_language.de: a pattern with <slot> needs a verbalizer",
    ),
    "markup": (
        "<slot>",
        "<slt>",
        'patterns.p1.text: markup not understood in "{text} . <slt>"; '
        "known: {field} {field|strip} <slot> <soft> <sep> <demos>",
    ),
    "two slots": ("<slot>", "<slot> <slot>", "patterns.p1.text: found 2 <slot>; expected at most one"),
    "demonstrations in the middle": ("{text} .", "{text} <demos>", "patterns.p1.text: <demos> must come first"),
    "unknown split": (
        "test: mine/test",
        "tests: mine/test",
        'sources.files: unknown split "tests"; did you mean "test"? known: test, train, validation',
    ),
    "files in a data set, and configurations": (
        "hub: owner/name",
        "hub: owner/name, config: x, files: {train: x}",
        "sources.hub: found files beside config or splits; they say all, leave those out",
    ),
    "neither hub nor files": ("hub: owner/name", "config: x", "sources.hub: found neither hub nor files; give one"),
    "a data set of an unknown split": (
        "hub: owner/name",
        "hub: {dev: owner/name}",
        'sources.hub: unknown split "dev"; known: test, train, validation',
    ),
    "parallel rows in one file": (
        "hub: owner/name",
        "hub: owner/name, parallel: true",
        "sources.hub.parallel: expected {language} in ['']: a file for each language",
    ),
    "label outside the set": (
        "hub: owner/name",
        'hub: owner/name, labels: {"0": nope}',
        'sources.hub.labels.0: "nope" is no label; did you mean "no"? known: no, yes',
    ),
    "unknown language": (
        "source: mine",
        "source: mine, by_language: {fr: {}}",
        'patterns.p1.by_language: "fr" is no language of the task',
    ),
    "a language's own text": (
        "source: mine",
        'source: mine, by_language: {de: {text: "{txt} <slot>"}}',
        'patterns.p1.by_language.de.text: no field "txt"; did you mean "text"? known: text',
    ),
    "a language's own words": (
        "source: mine",
        'source: mine, by_language: {de: {verbalizer: {"no": x}}}',
        "patterns.p1.by_language.de.verbalizer: found ['no']; expected one entry for each of ['no', 'yes']",
    ),
}


KINDS = {
    "tags": "kind: tags\nfields: {tokens: words}\nlabel: {column: tags, names: [A, B]}\nmetric: token_accuracy",
    "span": "kind: span\nfields: {question: question, context: passage}\nlabel: {column: answers}\nmetric: f1",
    "mlm": "kind: mlm\nfields: {text: text}\nmetric: token_accuracy",
    "text": "kind: text\nfields: {text: text}\nmetric: accuracy",
}
TEXTS = {"tags": "{tokens} <sep> {token} ?", "span": "{question} <sep> {context}", "mlm": "{text}", "text": "{text}"}


@pytest.fixture
def load_kind(tmp_path):
    """Load a small task of a kind, one part of it replaced."""

    def load(kind: str, old: str = "", new: str = ""):
        whole = (
            f"about: mine\n{KINDS[kind]}\nlanguages: [en]\nsources: {{files: {{files: {{train: x}}}}}}\n"
            f'patterns: {{p1: {{text: "{TEXTS[kind]}", source: mine}}}}\n'
        )
        assert old in whole
        path = tmp_path / "mine.yaml"
        path.write_text(whole.replace(old, new, 1) if old else whole, encoding="utf-8")
        return load_task(str(path))

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_and_has_its_own_metric_alone_unless_it_names_more(load_kind, kind):
    task = load_kind(kind)
    assert (task.kind.name, task.metrics) == (kind, [task.metric])


def test_the_metrics_of_a_task_begin_with_its_metric(load_kind):
    task = load_kind("tags", "metric: token_accuracy", "metric: token_accuracy\nmetrics: [token_accuracy, token_f1]")
    assert task.metrics == ["token_accuracy", "token_f1"]


def test_a_tags_task_may_ask_once_a_sentence(load_kind):
    assert load_kind("tags", " <sep> {token} ?", "").pattern("p1").text == "{tokens}"


KIND_ERRORS = {
    "no words": ("tags", "tokens: words", "text: words", "fields: found ['text']; kind tags needs tokens"),
    "two fields of words": (
        "tags",
        "tokens: words",
        "tokens: words, other: x",
        "fields: found ['other', 'tokens']; kind tags needs tokens",
    ),
    "a tag twice": ("tags", "names: [A, B]", "names: [A, A]", 'label.names: "A" stands there twice; keep one of them'),
    "no tag set": ("tags", ", names: [A, B]", "", "label.names: found [] for kind tags; expected the label set"),
    "neither words nor a word": (
        "tags",
        "{tokens} <sep> {token} ?",
        "what ?",
        "patterns.p1.text: kind tags reads its answers at {tokens}; the text has none",
    ),
    "a slot beside the words' own": (
        "tags",
        "{tokens} <sep> {token} ?",
        "{tokens} <slot> ?",
        "patterns.p1.text: found <slot> without {token}; every word of {tokens} is a slot already",
    ),
    "demonstrations": (
        "tags",
        "{tokens} <sep>",
        "<demos>{tokens} <sep>",
        "patterns.p1.text: found <demos>; only tasks of kind choice show demonstrations",
    ),
    "a metric of whole texts": (
        "tags",
        "token_accuracy",
        "exact_match",
        'metric: "exact_match" is unknown; '
        "known: entity_f1, span_f1, token_accuracy, token_f1, topro_mt5_official, topro_official",
    ),
    "a metric that few readouts have": (
        "tags",
        "token_accuracy",
        "span_f1",
        "metric: found span_f1, which not every readout has; list it in metrics only",
    ),
    "no context": (
        "span",
        ", context: passage",
        "",
        "fields: found ['question']; kind span needs context and question",
    ),
    "context not shown": (
        "span",
        " <sep> {context}",
        "",
        "patterns.p1.text: kind span reads its answers at {context}; the text has none",
    ),
    "questions without an answer": (
        "tags",
        "names: [A, B]",
        "names: [A, B], unanswerable: true",
        "label.unanswerable: found true for kind tags; only span has such rows",
    ),
    "a label set of answers": (
        "span",
        "column: answers",
        "names: [a]",
        "label.names: found ['a'] for kind span; expected none, only choice and tags have a label set",
    ),
    "a label set of no labels": (
        "mlm",
        "metric:",
        "label: {names: [a]}\nmetric:",
        "label.names: found ['a'] for kind mlm; expected none, only choice and tags have a label set",
    ),
}


@pytest.mark.parametrize("what", KIND_ERRORS)
def test_what_does_not_fit_a_kind_is_one_line(load_kind, tmp_path, what):
    kind, old, new, line = KIND_ERRORS[what]
    with pytest.raises(UserError) as caught:
        load_kind(kind, old, new)
    assert str(caught.value) == f"{tmp_path}/mine.yaml: {line}"


def test_the_tasks_of_xtreme_have_the_languages_of_its_lists():
    sizes = {
        name: len(set(load_task(name).languages))
        for name in ("panx", "udpos", "xquad", "mlqa", "tydiqa", "xnli", "pawsx")
    }
    assert sizes == {"panx": 48, "udpos": 38, "xquad": 11, "mlqa": 7, "tydiqa": 9, "xnli": 15, "pawsx": 7}
    assert set(load_task("udpos").languages) - set(load_task("udpos").sources["hub"].split_languages["test"]) == {
        "lt",
        "pl",
        "ro",
        "uk",
        "wo",
    }


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
    [
        ("a: [", "not readable as YAML: "),
        ("- a", "expected a mapping of keys, found list"),
        ("", "expected a mapping of keys, found NoneType"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text, line):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_task(str(path))
    assert str(caught.value).startswith(f"{path}: {line}")
    assert "\n" not in str(caught.value)


SHORT = """
kind: choice
files: mine.csv
fields: [message]
labels: [bug, praise]
label: topic
columns: {message: Text}
patterns:
  ask: "{message} <slot>"
  head: "{message}"
"""
LONG = """
kind: choice
fields: {message: message}
label: {column: topic, names: [bug, praise]}
languages: [en]
metric: accuracy
sources:
  files: {files: mine.csv, root: ".", columns: {message: Text}}
patterns:
  ask: {text: "{message} <slot>", verbalizer: {bug: bug, praise: praise}}
  head: {text: "{message}"}
"""


def read(folder, text: str, name: str = "mine") -> Task:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return load_task(str(path))


def test_short_forms_are_the_long_ones_written_shorter(tmp_path):
    short, full = read(tmp_path, SHORT), read(tmp_path, LONG)
    assert short.model_dump() == full.model_dump()
    assert short.sources["files"].root == str(tmp_path)
    assert "languages" not in short.model_fields_set


def test_a_name_in_the_file_is_what_messages_call_the_task(tmp_path):
    assert read(tmp_path, SHORT + "name: Tickets\n").name == "Tickets"


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("choice", "labels: [a, b]", "accuracy"),
        ("tags", "labels: [O, B-PER]", "entity_f1"),
        ("tags", "labels: [NOUN, VERB]", "token_accuracy"),
        ("span", "", "f1"),
        ("text", "", "accuracy"),
        ("mlm", "", "token_accuracy"),
    ],
)
def test_without_a_metric_the_kinds_usual_one_is_taken(kind, labels, expected, tmp_path):
    fields = {"tags": "[tokens]", "span": "[question, context]"}.get(kind, "[text]")
    task = read(tmp_path, f"kind: {kind}\nfiles: a.jsonl\nfields: {fields}\n{labels}\n")
    assert (task.metric, task.metrics) == (expected, [expected])


def test_a_list_of_metrics_names_the_metric(tmp_path):
    assert read(tmp_path, SHORT + "metrics: [accuracy]\n").metric == "accuracy"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("sources: {files: {hub: a/b}}", "files: found beside sources.files; keep one of them"),
        ("label: {names: [a]}", "labels: found beside label.names; keep one of them"),
        ("files:", "sources.files: found neither hub nor files; give one"),
        ("files: a.csv\nsources: {files: {hub: a/b}}", "files: found beside sources.files; keep one of them"),
    ],
)
def test_a_key_in_both_forms_is_refused(more, line, tmp_path):
    key = more.partition(":")[0]
    kept = "".join(row for row in SHORT.splitlines(keepends=True) if not row.startswith(f"{key}:"))
    with pytest.raises(UserError) as caught:
        read(tmp_path, kept + more + "\n")
    assert str(caught.value) == f"{tmp_path}/mine.yaml: {line}"


def test_columns_without_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="columns: found without files; give it to a source, or name files beside it"):
        read(tmp_path, SHORT.replace("files: mine.csv\n", ""))


def test_three_mistakes_are_three_lines_of_one_error(tmp_path):
    wrong = SHORT.replace("fields:", "metrc: accuracy\nfields:").replace('"{message} <slot>"', '"{mesage} <slot>"')
    wrong = wrong.replace('head: "{message}"', 'head: {text: "{message}", verbalizer: {bug: b}}\n  odd: {txt: x}')
    with pytest.raises(UserError) as caught:
        read(tmp_path, wrong)
    where = f"{tmp_path}/mine.yaml"
    assert str(caught.value).splitlines() == [
        f'{where}: unknown key "patterns.odd.txt"; did you mean "text"? known: {PATTERN_KEYS}',
        f'{where}: unknown key "metrc"; did you mean "metric"? known: {TASK_KEYS}',
        f'{where}: patterns.ask.text: no field "mesage"; did you mean "message"? known: message',
        f"{where}: patterns.head.verbalizer: found ['bug']; expected one entry for each of ['bug', 'praise']",
    ]


def test_every_task_has_its_fields_alone_and_its_patterns_with_demonstrations(tmp_path):
    task = read(tmp_path, LONG.replace("{message: message}", "{a: message, b: other}").replace("{message}", "{a}"))
    assert task.pattern("vanilla").text == "{a} <sep> {b}"
    assert task.pattern("ask+demos").text == "<demos>{a} <slot>"
    assert task.pattern("ask+demos").verbalizer == task.pattern("ask").verbalizer
    with pytest.raises(UserError, match=r'no pattern "aks\+demos"; known: ask, head'):
        task.pattern("aks+demos")


def test_demonstrations_stand_before_the_text_of_every_language(tmp_path):
    by_language = 'ask: {text: "{message} <slot>", by_language: {en: {text: "{message} : <slot>"}, de: {mode: mean}}}'
    task = read(tmp_path, SHORT.replace('ask: "{message} <slot>"', by_language) + "languages: [en, de]\n")
    pattern = task.pattern("ask+demos")
    assert [pattern.wording(language).text for language in ("en", "de", "fr")] == [
        "<demos>{message} : <slot>",
        "<demos>{message} <slot>",
        "<demos>{message} <slot>",
    ]


def test_a_task_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"sources: found none; say where rows come from, e\.g\. files: mine\.csv"):
        read(tmp_path, LONG.partition("sources:")[0] + "sources: {}\n")
