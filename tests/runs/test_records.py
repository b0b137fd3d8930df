"""Text that is read again: every change of it is found; lines, partial files and secrets."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypft import records
from raypft.cluster.package import listed
from raypft.config.load import load_job
from raypft.contract import cases, tiny
from raypft.errors import UserError, visible
from raypft.methods import _tickets
from raypft.records import PART, Damaged, Log, opened, sealed, sealed_yaml
from raypft.report.table import plain
from raypft.runs.provenance import command
from raypft.storage import path_of, tidy, write_text, written

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.text().filter(lambda key: key != "check"), VALUES, min_size=1, max_size=4)
FORMS = st.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False, "separators": (",", ":")}])


@given(RECORDS, FORMS)
def test_a_record_comes_back(record, form):
    try:
        text = sealed(record, **form).encode()
    except UnicodeEncodeError:  # a lone half of a character, which no file holds
        return
    assert repr(opened(text)) == repr(record)
    assert opened(json.dumps(record).encode()) is not None, "one without a hash is taken as it is"


@given(st.integers(0, 10**9), st.integers(0, 7), FORMS)
def test_no_bit_of_a_record_can_be_changed(place, bit, form):
    record = {"seed": 1, "cell": "00ff", "scores": {"en": 81.25, "de": 80.0}, "notes": ["a", None], "mean": 80.625}
    text = bytearray(sealed(record, **form).encode())
    text[place % len(text)] ^= 1 << bit
    try:
        found = opened(bytes(text))
    except ValueError:
        return
    # the hash's own key, or blanks around it: all that is told is what was written
    assert {key: value for key, value in found.items() if key in record} == record


@given(st.integers(1, 10**9))
def test_no_record_can_be_cut(length):
    text = sealed({"seed": 1, "cell": "00ff", "scores": {"en": 81.25}}, indent=1).encode()
    cut = text[: length % (len(text) - 1)]
    with pytest.raises(ValueError, match=r"it is not whole|it is empty"):
        opened(cut)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "it is empty"),
        (b"[1]", "found list; expected a mapping"),
        (b"[" * 100_000, "too deep"),
        (b'{"a": "x"}', "it has no a, or one of another kind"),
        (b'{"a": true}', "it has no a, or one of another kind"),
        (b'{"a": 1, "check": "0123456789abcdef"}', "it was changed after it was written"),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path, text, told):
    (tmp_path / "r.json").write_bytes(text)
    with pytest.raises(Damaged) as caught:
        records.read(tmp_path / "r.json", a=int)
    assert str(caught.value).startswith(f"{tmp_path}/r.json can't be read (")
    assert told in str(caught.value)
    assert records.read_or_none(tmp_path / "r.json") is None or text == b'{"a": "x"}' or b"true" in text
    assert records.read(tmp_path / "none.json") is None


def test_yaml_that_was_changed_is_told_and_an_old_one_is_not(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(sealed_yaml("lr: 0.001\n"))
    records.check_yaml(path)
    path.write_text(path.read_text().replace("0.001", "0.01"))
    with pytest.raises(Damaged, match="it was changed after it was written"):
        records.check_yaml(path)
    path.write_text("lr: 0.01\n")
    records.check_yaml(path)


def test_a_line_at_which_a_process_died_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n{"event": "epo')
    log = Log(path)
    log.append(b'{"event": "resume"}\n')
    log.append(b'{"event": "result"}\n')
    lines = path.read_bytes().splitlines()
    assert lines == [b'{"event": "start"}', b'{"event": "epo', b'{"event": "resume"}', b'{"event": "result"}']


def test_an_object_that_lines_are_appended_to_does_not_grow_for_ever():
    """It is written anew with every line, so that after some another follows."""
    log = Log(path_of("memory://some-logs/log.jsonl"))
    lines = [f"{number:5}".encode() + b" " * 999 + b"\n" for number in range(1000)]
    for line in lines:
        log.append(line)
    sizes = [part.stat().st_size for _, part in log._parts()]
    assert len(sizes) == 4
    assert max(sizes) <= PART + 2 * len(lines[0])
    assert log.read() == b"".join(lines)


def test_a_text_that_stands_there_is_not_written_again(tmp_path):
    path = tmp_path / "table.md"
    write_text(path, "é")
    before = path.stat().st_ino
    write_text(path, "é")
    assert path.stat().st_ino == before
    write_text(path, "e")
    assert path.read_text() == "e"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    with written(tmp_path / "a.json") as file:
        file.write_text("mine")
        name = file.name
    for left in (name, "a.99999.partial.json", name.removesuffix(".json")):
        (tmp_path / left).write_text("half")
    for kept in ("my.partial.notes", "x.partial"):
        (tmp_path / kept).write_text("mine")
    tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "my.partial.notes", "x.partial"}


def test_hosts_that_write_a_file_at_once_do_not_write_into_each_others(tmp_path, monkeypatch):
    """Their processes may have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "a.json"
    with written(path) as one, written(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("uri", ["s3://KEY:SECRET@bucket/runs", "sftp://me:SE/CRET@host/runs"])
def test_a_password_in_a_uri_is_refused_without_being_told(uri):
    with pytest.raises(UserError) as caught:
        path_of(uri)
    assert "holds a password" in str(caught.value)
    assert "CRET" not in str(caught.value)


SECRETS = [
    "storage=s3://KEY:hidden@b/f", "--token=hidden", "HF_TOKEN=hidden", "wandb.api_key=hidden",
    "data.root=https://x/y?a=1&X-Amz-Signature=hidden&b=2", "AWS_SECRET_ACCESS_KEY=hidden", "db.password=hidden",
]  # fmt: skip


@pytest.mark.parametrize(
    "word",
    [
        "data.root=https://x/y?a=1&X-Amz-Signature=hidden&b=2",
        "data.root=s3://KEY:hidden@bucket/data",
        "storage=https://x/y?sig=hidden",
        "backbone=https://me:hidden@host/model",
    ],
)
def test_a_secret_in_a_value_of_a_job_is_refused_without_being_told(word):
    key = word.partition("=")[0]
    with pytest.raises(UserError, match=rf"{key}: .* holds a key or password, which would stand in files") as caught:
        load_job("profit", ["task=xnli", "backbone=xlmr-base", word])
    assert "hidden" not in str(caught.value)


def test_the_command_in_a_provenance_holds_no_secret(monkeypatch):
    plain_words = ["run", "lora", "train.max_tokens=16", "train.tokens_at_once=4", "task=a:b@c"]
    monkeypatch.setattr(sys, "argv", [*plain_words, *SECRETS])
    told = command()
    assert told[: len(plain_words)] == plain_words
    assert "hidden" not in " ".join(told)
    assert told[5].endswith("@b/f"), "what is no secret stays"
    assert "b=2" in told[9]
    monkeypatch.setenv("RAYPFT_COMMAND", '["raypft", "tune", "x"]')  # as a trial has it
    assert command() == ["raypft", "tune", "x"]


def test_a_job_package_follows_no_link_out_of_its_folder(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "key").write_text("secret")
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "code.py").write_text("1")
    (tree / "key").symlink_to(tmp_path / "outside" / "key")
    (tree / "folder").symlink_to(tmp_path / "outside")
    (tree / "deep" / "own").symlink_to(tree / "code.py")
    names = {path.relative_to(tree).as_posix() for path in listed(tree)}
    assert names == {"code.py", "deep/own"}


def test_control_characters_reach_no_terminal_and_no_table():
    assert visible("a\x1b]0;owned\x07\x9b2J\tb\nc\r") == "a\\x1b]0;owned\\x07\\x9b2J\tb\nc\\r"
    assert plain("<b>\x1b[31m|") == r"\<b>\\x1b[31m\|", "Markdown shows the escape"


def test_a_ticket_of_which_a_bit_was_flipped_is_not_cut(tmp_path):
    path = Path(cases.ticket(tiny.backbone("bert")))
    own = tmp_path / "ticket.safetensors"
    content = bytearray(path.read_bytes())
    own.write_bytes(content)
    assert _tickets.cut(_tickets.open_ticket(str(own)), 0.2).size
    content[-5] ^= 64
    other = tmp_path / "flipped.safetensors"
    other.write_bytes(content)
    with pytest.raises(UserError, match=r"flipped\.safetensors can't be read: its differences are not those it was"):
        _tickets.cut(_tickets.open_ticket(str(other)), 0.2)
