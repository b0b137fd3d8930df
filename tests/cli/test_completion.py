"""What a shell puts in for a word: names, keys, values; as bash, which divides words at =, and as zsh asks for it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from raypft.cli import completion

LIBRARIES = ("torch", "transformers", "ray", "datasets", "deepspeed", "peft")


def bash(monkeypatch, line: str) -> None:
    """The line as bash gives it, the cursor behind its last character."""
    words = shlex.split(line.replace("=", " = ")) + ([""] if line.endswith(" ") else [])
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("raypft run gnnavi_", ["gnnavi_gcn", "gnnavi_sage"]),
        ("raypft run profit tas", ["task=", "task=…"]),
        ("raypft run profit task=sst", ["sst2"]),
        ("raypft run profit train.optimizer=", ["adamw", "adam"]),
        ("raypft run profit zero.stage=2", ["2"]),
        ("raypft run profit zero.offload=", ["true", "false"]),
        ("raypft run profit nothing=x", []),
    ],
)
def test_bash_gets_names_keys_and_values(line, found, monkeypatch):
    bash(monkeypatch, line)
    assert completion.jobs(line.rpartition(" ")[2].rpartition("=")[2]) == found


def test_other_shells_get_a_key_and_its_value_as_one_word(monkeypatch):
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert completion.jobs("task=sst") == ["task=sst2"]
    assert completion.jobs("backbone=smollm2") == ["backbone=smollm2-135m"]
    assert completion.campaigns("quick") == ["quickstart"]
    assert completion.campaigns("scale") == ["scale="]
    assert completion.catalogues("rec") == ["recipes"]


@pytest.mark.parametrize(("line", "found"), [("raypft doc", "doctor"), ("raypft check van", "vanilla")])
def test_the_command_completes_without_torch(line, found):
    words = shlex.split(line)
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_RAYPFT_COMPLETE": "complete_bash"}
    code = (
        "import atexit, sys; from raypft.cli import main; sys.argv = ['raypft']; "
        f"atexit.register(lambda: print(sorted({set(LIBRARIES)} & set(sys.modules)), file=sys.stderr)); main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert found in done.stdout.split(), done.stderr
    assert done.stderr.strip() == "[]"
