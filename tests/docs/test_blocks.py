"""Every shell and Python block of the README and the docs. What can run runs, page by page and in order, in a folder of
its own, with three-layer models in place of those named, one epoch and few test rows. A block whose title says what it
needs is not run; its words are checked as far as they go without: commands, options, recipes, keys, names."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import itertools
import random
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
import typer.main
import yaml

import raypft
from raypft.analysis import ANALYSES
from raypft.campaigns.load import campaign_names, load_campaign, words_of
from raypft.cli import main
from raypft.cli.app import app
from raypft.cluster import definition
from raypft.config.load import load_job
from raypft.config.words import split_words
from raypft.contract import tiny
from raypft.contract.run import method_of

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "cluster" / "README.md",
]
PAGES += [ROOT / "benchmarks" / "RESULTS.md"]
NEEDS = ("a cluster", "data", "finished runs", "GPUs", "the hub")
NOT_RUN = (*(f"needs {what}" for what in NEEDS), "installs packages", "runs for minutes")
"""The titles of blocks that are not run."""
LANGUAGES = ("sh", "console", "python", "yaml", "csv", "text", "bibtex")
FENCE = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
OTHER_PROGRAMS = ("make", "pip", "pytest", "python", "ray", "docker", "export")
MODELS = {"xlmr-base": "xlmr", "smollm2-135m": "llama"}
"""Models that the docs name, to the kinds that stand in for them."""
AS_LARGE = {"xlmr-base": {"max_position_embeddings": 514}, "smollm2-135m": {"num_hidden_layers": 30}}
"""What messages and campaigns tell of these models."""
WORDS = {"billing": "terrible", "bug": "wrong", "praise": "great"}
LABEL_WORDS = ("money", "error", "thanks")
RAY = ("tutorials/paper-table.md",)
"""Pages of which a block starts Ray."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its title, its text."""

    where: str
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text[: match.start()].count("\n") + 1
        found.append(Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2] or "", match[3]))
    return found


def commands(text: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """The commands of a shell block, a list of words each, the page's variables filled in."""
    for line in text.replace("\\\n", " ").splitlines():
        filled = re.sub(r"\$([A-Z]\w*)", lambda name: variables.get(name[1], name[0]), line)
        words = shlex.split(filled, comments=True)
        while words and (given := re.fullmatch(r"([A-Z_]\w*)=(.*)", words[0])):
            variables[given[1]] = given[2]
            words.pop(0)
        if words:
            yield words


def page_name(page: Path) -> str:
    """What a test calls a page."""
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


def of_pages(which: Any) -> list[Any]:
    """The pages that have a block of some kind, as parameters of a test."""
    marks = {name: [pytest.mark.ray] for name in RAY}
    names = {page_name(page): page for page in PAGES if any(map(which, blocks(page)))}
    return [pytest.param(page, id=name, marks=marks.get(name, [])) for name, page in names.items()]


def is_run(block: Block) -> bool:
    """Whether a block can run here."""
    return block.language in ("sh", "console", "python") and block.title not in NOT_RUN


def is_read(block: Block) -> bool:
    """Whether only the words of a block can be checked."""
    return block.language in ("sh", "python") and block.title in NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_blocks_say_what_they_are(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: found {block.language!r} as the language"
        if block.language in ("sh", "console"):
            assert block.title in ("", *NOT_RUN), f"{block.where}: a title that is no reason: {block.title}"
        if block.language == "yaml":
            assert yaml.safe_load(block.text), block.where
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert "```" not in prose
    assert not re.search(r"^(    |\t)(raypft|python|pip|make|pytest) ", prose, re.MULTILINE), "a block without a fence"


# what is read


def check_words(words: list[str]) -> None:
    """Whether a command is one, as far as that can be known without data, models and machines."""
    program, *rest = words
    if program == "python":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), rest[0]
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests/")), rest
    elif program != "raypft":
        assert program in OTHER_PROGRAMS, program
    else:
        check_raypft(rest)


def check_raypft(words: list[str]) -> None:
    """The same of a command of raypft, its first word aside."""
    command: Any = typer.main.get_command(app)
    path, rest = [], list(words)
    if rest[0].startswith("-"):
        assert rest[0] in itertools.chain.from_iterable(param.opts for param in command.params), rest[0]
        return
    while hasattr(command, "commands"):
        # `raypft submit -- VERB …` is its default command
        name = rest.pop(0) if rest[0] in command.commands else "run"
        command = command.commands[name]
        path.append(name)
    given = command.make_context(" ".join(path), list(rest)).params
    check_meaning(path, given)


def check_meaning(path: list[str], given: dict[str, Any]) -> None:
    """What the words of a command name: recipes, keys, campaigns, definitions, analyses."""
    words = given.get("words") or given.get("command") or []
    if path in (["run"], ["check"], ["show"]):
        for name, overrides in split_words(words):
            load_job(name, overrides)
    elif path in (["tune"], ["plan"]):
        load_campaign(*words_of(words))
    elif path == ["analyse"]:
        assert given["kind"] in ANALYSES.names()
    elif path == ["contract"]:
        method_of(words)
    elif path[0] == "submit" and path[1] == "run":
        check_raypft(list(words))
    elif path[0] == "cluster" and given.get("file"):
        definition.load(ROOT / str(given["file"]))


@pytest.mark.parametrize("page", of_pages(is_read))
def test_blocks_that_need_more_than_this_machine_have_words_that_fit(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    variables: dict[str, str] = {}
    for block in filter(is_read, blocks(page)):
        if block.language == "python":
            compile(block.text, block.where, "exec")
            continue
        for words in commands(block.text, variables):
            try:
                check_words(words)
            except Exception as error:
                raise AssertionError(f"{block.where}: {shlex.join(words)}: {error}") from error


# what is run


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny models that know the words of the docs."""
    folders = {}
    for name, kind in MODELS.items():
        folder = tmp_path_factory.mktemp("models") / name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "WORDS", [*tiny.WORDS, *LABEL_WORDS])
            tokenizer = tiny.tokenizer(tiny.MODELS[kind][0] == "masked")
        config = tiny.config(kind)
        config.vocab_size = len(tokenizer)
        for key, value in AS_LARGE[name].items():
            setattr(config, key, value)
        auto = transformers.AutoModelForMaskedLM if kind == "xlmr" else transformers.AutoModelForCausalLM
        auto.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@dataclass
class Reader:
    """Someone who types a page's blocks, one after the other, in the current folder."""

    models: dict[str, str]
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "docs"}
        load = raypft.load_job
        small = {"train.epochs": 1, "test.limit": 4}
        self.monkeypatch.setattr(raypft, "load_job", lambda name, **keys: load(name, **keys, **small))

    def does(self, block: Block) -> None:
        """Write a block's file, or run its commands."""
        text = block.text
        for name, folder in self.models.items():
            text = text.replace(f'"{name}"', f'"{folder}"').replace(f"backbone: {name}", f"backbone: {folder}")
        if block.title.endswith((".yaml", ".py")):
            Path(block.title).write_text(text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(text, block.where, "exec"), self.names)
        elif block.language == "sh":
            for words in commands(block.text, {}):
                code, said = self.types(words)
                assert code == 0, f"{block.where}: {shlex.join(words)}\n{said}"
        elif block.language == "console":
            self.converses(block)

    def types(self, words: list[str]) -> tuple[int, str]:
        """Type a command, with a small model; its exit code and what it said."""
        assert words[0] == "raypft", words
        self.monkeypatch.setattr("sys.argv", [*self.globbed(words), *self.smaller(words)])
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), said.getvalue()

    def globbed(self, words: list[str]) -> Iterator[str]:
        """The words as a shell gives them, models replaced."""
        for word in words:
            key, _, value = word.partition("=")
            if key == "backbone" and value in self.models:
                yield f"backbone={self.models[value]}"
            elif "*" in word:
                found = sorted(glob.glob(word))
                assert found, f"{word}: nothing is called so"
                yield from found
            else:
                yield word

    def smaller(self, words: list[str]) -> list[str]:
        """What a command is given so as not to take minutes."""
        small = ["train.epochs=1", "test.limit=4"]
        if words[1] == "run":
            return [*small, "seeds=1"]
        if words[1] in ("tune", "plan"):
            own = [f"backbone={self.models['smollm2-135m']}"] if words[2] in campaign_names() else []
            return [*small, "seeds=1", *own]
        return []

    def converses(self, block: Block) -> None:
        """Type what stands behind $ and see that what follows is said; … stands for anything."""
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, expected = part.partition("\n")
            _, said = self.types(shlex.split(line))
            pattern = ".*".join(map(re.escape, expected.strip().split("…")))
            for folder in self.models.values():
                said = said.replace(folder, Path(folder).name)
            assert re.fullmatch(pattern, said.strip(), re.DOTALL), f"{block.where}: {line}\n{said}"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A reader's folder, the current one: the cluster definitions of the checkout, and a CSV."""
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster")
    fill = random.Random(0)
    with (tmp_path / "support.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["message", "topic"])
        writer.writeheader()
        for number in range(60):
            topic = list(WORDS)[number % 3]
            about = " ".join(fill.choices(["the", "a", "film", "was", "is", "it"], k=4))
            writer.writerow({"message": f"{about} {WORDS[topic]}", "topic": topic})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", of_pages(is_run))
def test_blocks_run(page, home, models, monkeypatch):
    reader = Reader(models, monkeypatch)
    for block in blocks(page):
        if block.title not in NOT_RUN:
            reader.does(block)
