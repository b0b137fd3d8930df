"""The wheel, made from the sdist, works outside the checkout.

It is installed into an environment that has nothing else; the libraries it needs are then seen through a .pth file,
from the environment of the tests. (Files of that environment which lead to the checkout are not read so.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from raypft._version import __version__
from raypft.contract import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with sdist and wheel."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def outside(built, tmp_path_factory) -> Path:
    """A folder with the environment `env` and tiny models: `model` is masked, `deep` is causal and has 30 layers."""
    place = tmp_path_factory.mktemp("outside")
    venv.create(place / "env", with_pip=False, symlinks=True)
    python = place / "env" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    install = ["pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    lib = Path(sysconfig.get_path("purelib", vars={"base": str(place / "env")}))
    (lib / "seen.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for kind, name in (("bert", "model"), ("llama", "deep")):
        made = tiny.backbone(kind)
        made.model.config.num_hidden_layers = 30 if name == "deep" else made.model.config.num_hidden_layers
        type(made.model)(made.model.config).save_pretrained(place / name)
        made.text.tokenizer.save_pretrained(place / name)
    return place


def said(place: Path, *words: str) -> str:
    """What the installed command prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(place / "env" / "bin" / words[0]), *words[1:]]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(folder: str) -> set[str]:
    """Files of a folder that git knows, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return {path for path in listed.stdout.splitlines() if (ROOT / path).is_file()}


def test_the_wheel_holds_every_file_of_the_package(built):
    (wheel,) = built.glob(f"raypft-{__version__}-py3-none-any.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert tracked("raypft") <= held
    assert {f"raypft/{path}" for path in tracked("tune_spaces")} <= held
    assert {path.replace("cluster/", "raypft/cluster/definitions/", 1) for path in tracked("cluster")} <= held
    assert "raypft/py.typed" in held
    others = {path for path in held if not path.startswith((f"raypft-{__version__}.dist-info/", "raypft/"))}
    assert others == set()


def test_the_sdist_holds_what_tests_and_readers_need(built):
    (sdist,) = built.glob(f"raypft-{__version__}.tar.gz")
    with tarfile.open(sdist) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    needed = ("LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt", "Makefile", "README.md")
    assert {*needed, "docs/architecture.md", "tests/conftest.py", "cluster/Dockerfile"} <= held
    assert sdist.stat().st_size < 3 << 20


def test_the_metadata_name_licence_extras_and_python(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        told = Parser().parsestr(file.read(f"raypft-{__version__}.dist-info/METADATA").decode())
        assert f"raypft-{__version__}.dist-info/licenses/LICENSE" in file.namelist()
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == ">=3.11"
    assert {"tensorboard", "mlflow", "wandb", "s3", "gcs", "azure", "dev"} <= set(told.get_all("Provides-Extra") or [])


def test_the_installed_package_is_the_wheels(outside):
    code = "import raypft, sys; print(raypft.__file__); print(sys.path)"
    file, path = said(outside, "python", "-c", code).splitlines()
    assert Path(file).is_relative_to(outside / "env")
    assert str(ROOT) not in path.replace(sysconfig.get_path("purelib"), "")
    assert said(outside, "raypft", "--version").strip() == f"raypft {__version__}"


def test_lists_and_definitions_come_with_it(outside):
    assert "xnli" in said(outside, "raypft", "list", "tasks")
    assert "profit" in said(outside, "raypft", "list", "recipes")
    names = ("aws", "azure", "fake", "gcp", "kubernetes", "local", "onprem")
    assert said(outside, "raypft", "cluster", "validate", *names) == "".join(f"{name}: valid\n" for name in names)


def test_a_run_its_report_and_a_campaigns_plan(outside):
    """Bundled rows, recipes and campaigns, templates of pages, all from the wheel."""
    words = ("task=sentiment", "backbone=model", "shots=2", "seeds=1", "train.epochs=1")
    out = said(outside, "raypft", "run", "profit", *words)
    assert "mean" in out
    (run,) = (outside / "runs").iterdir()
    assert json.loads((run / "provenance.json").read_text())["packages"]["raypft"] == __version__
    said(outside, "raypft", "report", str(run), "--out", "report")
    assert "<style" in (outside / "report" / "index.html").read_text(encoding="utf-8")
    plan = said(outside, "raypft", "plan", "quickstart", "backbone=deep")
    assert "trials: 4; cells: 0 done" in plan
    assert "lacks" not in plan
