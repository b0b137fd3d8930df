"""What the package says of itself holds: dependencies, tested versions, citation, changelog, image, hooks."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from raypft._version import __version__
from raypft.config.load import recipe_names
from raypft.contract.run import conclude, method_of, outcomes
from raypft.runs.trackers import PACKAGES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OF_TRANSFORMERS = {"gguf", "protobuf", "sentencepiece"}
"""Dependencies that transformers imports where a model needs them."""
UNTESTED = {"gcsfs", "adlfs"}
"""Clients of stores for which there is no stand-in here."""


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Canonical name to requirement, without raypft's own extras."""
    found = {canonicalize_name(one.name): one for one in map(Requirement, lines)}
    return {name: one for name, one in found.items() if name != "raypft"}


def constraints() -> dict[str, str]:
    """Canonical name to tested version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def imported(path: Path) -> set[str]:
    """Top-level modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"raypft"}


def test_every_import_is_declared_and_every_dependency_is_used():
    modules = set().union(*map(imported, (ROOT / "raypft").rglob("*.py")))
    of_extras = {"mlflow": "mlflow", "wandb": "wandb", "bitsandbytes": "quantize"}
    assert of_extras.keys() < modules
    distributions = packages_distributions()
    used = {canonicalize_name(distributions[module][0]) for module in modules - of_extras.keys()}
    declared = set(requirements(PROJECT["dependencies"]))
    assert used - declared == set()
    assert declared - used == OF_TRANSFORMERS
    for module, extra in of_extras.items():
        assert canonicalize_name(distributions.get(module, [module])[0]) in requirements(EXTRAS[extra])


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_is_an_extra_that_tests_have(name):
    assert name in EXTRAS
    (own,) = [one for one in map(Requirement, EXTRAS["dev"]) if one.name == "raypft"]
    assert name in own.extras


def test_ranges_hold_the_tested_versions():
    every = [PROJECT["dependencies"], *EXTRAS.values()]
    tested = constraints()
    for lines in every:
        for name, requirement in requirements(lines).items():
            if name not in UNTESTED:
                assert requirement.specifier.contains(tested[name]), requirement
    named = set().union(*(requirements(lines) for lines in every))
    assert set(tested) == named - UNTESTED


def test_torch_is_a_range_that_keeps_a_users_own_build():
    torch = requirements(PROJECT["dependencies"])["torch"].specifier
    assert all(torch.contains(version) for version in ("2.11.0+cu128", "2.13.0+cpu", "2.14.1"))
    assert not torch.contains("2.10.0")
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_pythons_are_those_of_the_classifiers():
    pythons = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11"


PERSON = {"type": "object", "required": ["family-names", "given-names"], "additionalProperties": False}
PERSON["properties"] = {"family-names": {"type": "string"}, "given-names": {"type": "string"}}
ENTITY = {"type": "object", "required": ["name"], "additionalProperties": False}
ENTITY["properties"] = {key: {"type": "string"} for key in ("name", "city")} | {"country": {"pattern": "^[A-Z]{2}$"}}
COMMON = {"type": "string", "minLength": 1}
REFERENCE = {
    "type": "object",
    "required": ["type", "title", "authors", "year"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["conference-paper", "article"]},
        **dict.fromkeys(("title", "notes", "collection-title"), COMMON),
        "authors": {"type": "array", "minItems": 1, "uniqueItems": True, "items": PERSON},
        **{key: {"type": "integer"} for key in ("year", "start", "end")},
        **dict.fromkeys(("conference", "publisher"), ENTITY),
        "identifiers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "value"],
                "properties": {"type": {"const": "other"}, "value": {"pattern": r"^arXiv:\d{4}\.\d{5}$"}},
            },
        },
    },
}
CITATION = {
    "type": "object",
    "required": ["cff-version", "message", "title", "authors", "version", "license", "references"],
    "additionalProperties": False,
    "properties": {
        "cff-version": {"const": "1.2.0"},
        **dict.fromkeys(("message", "title", "abstract", "version", "license"), COMMON),
        "type": {"const": "software"},
        "authors": {"type": "array", "minItems": 1, "items": {"anyOf": [PERSON, ENTITY]}},
        "keywords": {"type": "array", "minItems": 1, "uniqueItems": True, "items": COMMON},
        "references": {"type": "array", "items": REFERENCE},
    },
}
"""What the Citation File Format 1.2.0 asks of the keys that are used."""


def test_the_citation_is_valid_and_names_the_papers_of_every_recipe():
    cited: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    jsonschema.validate(cited, CITATION)
    assert cited["version"] == __version__
    assert cited["license"] == PROJECT["license"]
    named = re.findall(r"[a-z]\w+", " ".join(one["notes"].partition("recipes")[2] for one in cited["references"]))
    assert set(named) <= set(recipe_names())
    assert len(named) == len(set(named))
    papers = (
        "Ma et al. 2023",
        "Ma et al. 2024",
        "Yuan et al. 2024",
        "LTP (arXiv",
        "Zhao & Schuetze 2021",
        "Tu et al. 2022",
    )
    from raypft.config.load import recipe_source

    of_papers = {name for name in recipe_names() if recipe_source(name).startswith(papers)}
    assert of_papers == set(named)


def test_licence_and_changelog_are_whole():
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence[:100]
    assert "END OF TERMS AND CONDITIONS" in licence
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert set(heads) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert __version__ in text


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "docs/trackers.md", "docs/install.md"])
def test_links_of_a_page_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_image_is_made_of_what_is_there_and_has_the_tested_versions(tmp_path):
    """What the Dockerfile copies suffices to build the package, and its words name things that exist."""
    text = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    for words in re.findall(r"^COPY --chown=\S+ (.*)$", text, re.MULTILINE):
        *sources, target = words.split()
        for source in sources:
            place = tmp_path / target if source == Path(target).name else tmp_path / target / source
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    (install,) = re.findall(
        r'^RUN pip install --no-cache-dir -c (\S+) "\.\[(.*)\]" && python -m (.*)$', text, re.MULTILINE
    )
    constraint, extras, command = install
    assert (tmp_path / constraint).is_file()
    assert set(extras.split(",")) <= set(EXTRAS)
    module, *words = command.split()
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=True)
    assert "gnnavi" in done.stdout
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True, capture_output=True
    )
    assert len(list(tmp_path.glob(f"dist/raypft-{__version__}-*.whl"))) == 1
    for base in re.findall(r"rayproject/ray:(\S+)", text):
        ray, python, _ = base.split("-")
        assert ray == constraints()["ray"]
        assert python == "py311"
    for page in (text, (ROOT / "docs" / "install.md").read_text(encoding="utf-8")):
        for tag in re.findall(r"registry\.example\.com/raypft:(\S+)", page):
            assert tag.startswith(f"{__version__}-ray{constraints()['ray']}")


def test_hooks_run_offline_and_refuse_what_ruff_refuses(tmp_path):
    shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "good.py").write_text('"""Nothing."""\n')
    environment = os.environ | {"PRE_COMMIT_HOME": str(tmp_path / "home"), "SKIP": "quick-test"}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "HTTPS_PROXY": "http://127.0.0.1:9"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    run("git", "init", "--quiet")
    run("git", "add", "good.py", ".pre-commit-config.yaml")
    hooks = (sys.executable, "-m", "pre_commit", "run", "--all-files")
    done = run(*hooks)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "bad.py").write_text('"""Nothing."""\nimport os\n')
    run("git", "add", "bad.py")
    done = run(*hooks)
    assert done.returncode == 1
    assert "F401" in done.stdout


def test_the_hooks_quick_test_is_one():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (entry,) = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"] if hook["id"] == "quick-test"]
    path = re.findall(r"tests/\S+", entry)[0]
    assert (ROOT / path).is_file()


def test_the_method_that_contributing_shows_keeps_what_every_method_promises(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = text[text.index("## A method in one file") :]
    block = re.findall(r"(?:^    .*\n|^\n)+", part, re.MULTILINE)
    code = next(one for one in block if "class Norms" in one)
    path = tmp_path / "norms.py"
    path.write_text(re.sub(r"^    ", "", code.strip("\n"), flags=re.MULTILINE) + "\n")
    method, options = method_of([str(path)])
    seen = list(outcomes(method, ["bert"], options, False))
    assert "keeps its promises" in conclude(method, seen)
    assert sum(outcome.status == "ok" for outcome in seen) > 5
