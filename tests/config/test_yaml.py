"""Every YAML file that raypft reads goes through one loader: a key stands once, a byte-order mark is none of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raypft.campaigns.load import open_campaign
from raypft.campaigns.state import reopened
from raypft.cluster.definition import load
from raypft.config.load import load_job
from raypft.errors import UserError
from raypft.runs.results import read_job
from raypft.schema import flat, load_yaml, read_yaml
from raypft.tasks.load import load_task

READERS = {
    "job": ("mine.yaml", load_job),
    "task": ("mine.yaml", load_task),
    "campaign": ("mine.yaml", open_campaign),
    "cluster definition": ("mine.yaml", load),
    "a run's job": ("job.yaml", lambda path: read_job(Path(path).parent)),
    "a campaign's folder": ("campaign.yaml", lambda path: reopened(Path(path).parent)),
}


@pytest.mark.parametrize("what", READERS)
def test_a_key_that_stands_twice_is_refused_with_key_and_line(tmp_path, what):
    name, reader = READERS[what]
    path = tmp_path / name
    path.write_text("about: mine\ntrain:\n  lr: 1.0e-2\n  epochs: 7\nseeds: [0]\ntrain:\n  batch_size: 4\n")
    with pytest.raises(UserError) as caught:
        reader(str(path))
    line = f'{path}: key "train" stands twice in one mapping, again in line 6; keep one of them'
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a: {b: 1, c: 2, b: 1}", "b", 1),
        ("a:\n- x: 1\n  y: 2\n  x: 3\n", "x", 4),
        ("yes: 1\ntrue: 2\n", "True", 2),
        ("'a': 1\n\"a\": 2\n", "a", 2),
        ("base: &b {p: 1}\nmine:\n  <<: *b\n  q: 1\n  q: 2\n", "q", 5),
    ],
)
def test_it_is_found_at_any_depth(tmp_path, text, key, line):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f'^here: key "{key}" stands twice in one mapping, again in line {line}; '):
        load_yaml(path, "here")


def test_what_yaml_allows_is_read(tmp_path):
    """The same key in other mappings, and one that replaces a merged one."""
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffbase: &b {p: 1, q: 1}\nmine: {<<: *b, p: 2}\nother: {p: é, '1': a, 1: b}\n".encode())
    whole = load_yaml(path, "here")
    assert whole == {"base": {"p": 1, "q": 1}, "mine": {"p": 2, "q": 1}, "other": {"p": "é", "1": "a", 1: "b"}}


@pytest.mark.parametrize(
    "content", [b"a: 2020-13-45", b"a: \xff", b"{[a]: 1}", b"a: b: c", b"- a\n---\n- b\n", b"[" * 5000]
)
def test_what_is_no_yaml_is_one_line(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^here: not readable as YAML: ") as caught:
        load_yaml(path, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "shown"), [("1", "1"), ("on", "True"), ("~", "None")])
def test_a_key_that_is_no_text_is_refused(tmp_path, key, shown):
    path = tmp_path / "x.yaml"
    path.write_text(f"task: sst2\n{key}: 2\n")
    with pytest.raises(UserError, match=f"^here: found the key {shown}, which is no text; "):
        read_yaml(path, "here")


def test_a_campaigns_key_is_given_nested_or_dotted_not_both():
    assert flat({"train": {"lr": 1}, "train.epochs": 2}) == {"train.lr": 1, "train.epochs": 2}
    with pytest.raises(UserError, match=r'key "train.lr" is given twice, nested and dotted'):
        flat({"train.lr": 1, "train": {"lr": 2}})
