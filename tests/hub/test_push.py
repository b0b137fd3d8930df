"""What a run trained, pushed to the hub and read back; model cards whose Python runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from layouts import files

import raypft
from raypft import hub as our_hub
from raypft.batch import collate
from raypft.cli import app
from raypft.cli.app import main
from raypft.errors import UserError
from raypft.runs.predict import Trained

TOKEN = "hf_" + "t" * 34
TINY: dict[str, Any] = {
    "task": "sentiment",
    "shots": 2,
    "seeds": [0],
    "train": {"epochs": 1, "lr": 0.01, "max_tokens": 150},
    "dev": {"limit": 1},
    "test": {"limit": 1, "languages": ["en"]},
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("profit", {}),
    "lora": ("lora", {}),
    "lora of a head": ("vanilla", {"method": "lora"}),
    "gnnavi": ("gnnavi_gcn", {}),
}


@pytest.fixture
def here(hub_here, monkeypatch, tmp_path):
    """The stand-in with a user, whose token this process has, and a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    hub_here.tokens = {TOKEN: "me", "hf_reads": "me"}
    hub_here.readonly = {"hf_reads"}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    our_hub.say.cache_clear()
    return hub_here


def ran(backbone: str, name: str) -> Trained:
    """A finished run's model."""
    recipe, more = RUNS[name]
    results = raypft.run(recipe, backbone=backbone, **{**TINY, **more})
    return raypft.load_trained(results.folder)


def block_of(card: str) -> str:
    """The Python lines of a model card."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def scores_of(model: Any, trained: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The label scores of a test row, by a loaded transformers model and by raypft."""
    (prompt,) = trained.encoder({"id": "0", "language": "en", "text": "the film was good", "label": None})
    batch = collate([prompt], trained.learner.method.backbone.pad, [trained.learner.method.columns(prompt)])
    with torch.no_grad():
        ours = trained.learner(batch)
        backbone = trained.learner.method.backbone
        segments = backbone.arguments(batch) if backbone.family == "masked" else {}
        logits = model.eval()(input_ids=batch.ids, attention_mask=batch.mask, **segments).logits
        if logits.dim() == 2:
            return logits, ours
        columns = [own[0] for own in trained.learner.readout.wordings[0]]
        return logits[0, prompt.marks["slot"]][:, columns], ours


@pytest.mark.parametrize(
    ("name", "base", "pushed"),
    [
        ("full", "hub", True),
        ("full", "folder", False),
        ("lora", "hub", True),
        ("lora", "hub", False),
        ("lora", "folder", False),
        ("lora of a head", "hub", True),
        ("lora of a head", "folder", True),
        ("gnnavi", "hub", True),
        ("gnnavi", "folder", False),
    ],
)
def test_the_cards_python_loads_equal_scores(name, base, pushed, here, tmp_path, capsys):
    alias = "mbert" if name == "lora of a head" or name == "full" else "smollm2-135m"
    commit = here.add("o/base", files(alias))
    for path, content in files(alias).items() if base == "folder" else ():
        (tmp_path / "models" / "base" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / "base" / path).write_bytes(content)
    trained = ran("o/base" if base == "hub" else "models/base", name)
    if pushed:
        raypft.export(trained, push="me/new")
        repo = here.repos["models", "me/new"]
        assert repo.private
        written = repo.commits[repo.refs["main"]]
    else:
        raypft.export(trained, "out")
        written = {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()}
    card = written["README.md"].decode()
    assert ("base_model: o/base" in card) == (base == "hub")
    here.add("o/base", {"config.json": b"moved"})
    os.chdir("/")
    made: dict[str, Any] = {}
    exec(block_of(card), made)
    if name == "gnnavi":
        parts = trained.learner.method.parts()
        assert set(made["parts"]) == set(parts)
        assert all(torch.equal(made["parts"][key], value) for key, value in parts.items())
        return
    theirs, ours = scores_of(made["model"], trained)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert made["tokenizer"].get_vocab() == trained.encoder.text.tokenizer.get_vocab()
    if name != "full":
        adapter = json.loads(written["adapter_config.json"])
        place = ("o/base", commit) if base == "hub" else (str(tmp_path / "models" / "base"), None)
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == place


def test_what_was_pushed_is_a_backbone(here):
    here.add("o/base", files("mbert"))
    trained = ran("o/base", "full")
    raypft.export(trained, push="me/new")
    rows = [{"text": "the film was good"}]
    direct = raypft.run("direct", backbone="me/new", task="sentiment", seeds=[0], test=TINY["test"])
    expected, found = trained.predict(rows), raypft.load_trained(direct.folder).predict(rows)
    assert found.to_pylist()[0] == pytest.approx(expected.to_pylist()[0], abs=1e-6)


def call(monkeypatch, *words: str) -> int:
    """A command's exit code."""
    monkeypatch.setattr(sys, "argv", ["raypft", *words])
    try:
        main(lambda: app(list(words), standalone_mode=False))
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_the_command_says_where_it_is_and_the_token_is_nowhere(here, monkeypatch, tmp_path, capsys):
    here.add("o/base", files("mbert"))
    folder = str(ran("o/base", "full").folder)
    capsys.readouterr()
    assert call(monkeypatch, "export", folder, "--push", "me/new") == 0
    told = capsys.readouterr()
    assert told.out == f"pushed to {here.url}/me/new; a new repository is private\n"
    assert told.err == ""
    assert call(monkeypatch, "export", folder, "out", "--push", "me/new") == 2
    assert capsys.readouterr().err == "raypft: export: me/new holds something already (README.md); give a new name\n"
    assert not Path("out").exists()
    assert call(monkeypatch, "export", folder, "out", "--push", "me/newer") == 0
    written = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    repo = here.repos["models", "me/newer"]
    assert {path: value for path, value in repo.commits[repo.refs["main"]].items() if path in written} == written
    for path in tmp_path.rglob("*"):
        if path.is_file() and "hf/" not in str(path):
            assert TOKEN.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("name", "token", "line"),
    [
        ("new", TOKEN, "found --push new; expected OWNER/NAME, a new repository of the hub"),
        ("a/b/c", TOKEN, "found --push a/b/c; expected OWNER/NAME, a new repository of the hub"),
        ("me/new", None, "--push needs a token that may write: set HF_TOKEN, or log in by hf auth login"),
        ("you/new", TOKEN, "the token is of me, who may not push to you; expected me"),
        ("me/new", "hf_reads", "the token may only read; --push needs one that may write, in HF_TOKEN"),
        ("me/new", "hf_" + "u" * 34, "me/new can't be pushed: the hub does not know the token in HF_TOKEN"),
        ("me/new", "hf_\x01" + "u" * 34, "me/new can't be pushed: "),
    ],
)
def test_who_may_not_push_is_told_before_anything_is_read(name, token, line, here, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert call(monkeypatch, "export", "runs/none", "out", "--push", name) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raypft: export: {line}")
    assert error.count("\n") == 1
    assert "uuuu" not in error
    assert not Path("out").exists()


def test_without_a_hub_nothing_is_pushed(here, monkeypatch, closed_port, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert call(monkeypatch, "export", "runs/none", "--push", "me/new") == 2
    expected = "raypft: export: me/new can't be pushed: the hub can't be reached: "
    assert capsys.readouterr().err == f"{expected}HF_HUB_OFFLINE is set\n"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert call(monkeypatch, "export", "runs/none", "--push", "me/new") == 2
    assert capsys.readouterr().err == f"{expected}127.0.0.1: [Errno 111] Connection refused\n"
    assert call(monkeypatch, "export", "runs/none") == 2
    assert "found neither DIR nor --push" in capsys.readouterr().err


def test_a_push_that_breaks_off_leaves_the_folder(here, monkeypatch, capsys):
    here.add("o/base", files("mbert"))
    folder = str(ran("o/base", "full").folder)
    check, checks = our_hub.check_upload, []

    def then_break(name: str) -> None:
        check(name)
        checks.append(name)
        here.broken = 403 if len(checks) == 2 else None

    monkeypatch.setattr(our_hub, "check_upload", then_break)
    capsys.readouterr()
    assert call(monkeypatch, "export", folder, "out", "--push", "me/new") == 2
    line = "raypft: export: me/new can't be pushed: the token in HF_TOKEN (or of hf auth login) may not do that"
    assert capsys.readouterr().err == f"{line}; the model is in out\n"
    assert Path("out/README.md").is_file()


def test_importing_without_a_hub_asks_nothing(hub):
    code = "import raypft.hub, raypft.backbones.fetch"
    subprocess.run([sys.executable, "-c", code], env=hub.env, check=True)
    assert hub.log == []
    with pytest.raises(UserError, match="found neither folder nor push"):
        raypft.export(None)  # pyright: ignore[reportArgumentType]
