"""What a result depends on beside the job: code, packages, machine, model, data."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from raypft.data.origin import commits
from raypft.errors import without_secrets
from raypft.runs.prepare import Prepared

COMMAND = "RAYPFT_COMMAND"
"""Where processes that a command starts find it, as JSON."""
PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "ray",
    "peft",
    "datasets",
    "pyarrow",
    "safetensors",
)


def provenance(prepared: Prepared) -> dict[str, Any]:
    """As JSON can hold it; see the module."""
    job, origin, skeleton = prepared.job, prepared.resolved.origin, prepared.skeleton
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command(),
        "folder": str(Path.cwd()),
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("raypft", *PACKAGES)},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus},
        "backbone": {
            "name": job.backbone,
            "source": skeleton.hub or skeleton.source,
            "revision": skeleton.revision,
        },
        "data": {
            "source": origin.name,
            "root": origin.root,
            "hub": origin.source.hub,
            "revisions": list(commits(origin).values()),
        },
        "manifests": {seed: manifest["hash"] for seed, manifest in prepared.manifests.items()},
    }


def command() -> list[str]:
    """The words of the user's command, without secrets."""
    given = os.environ.get(COMMAND)
    return json.loads(given) if given else list(map(without_secrets, sys.argv))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit and dirtiness of the code, None where it is no checkout."""
    commit = _ask_git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(_ask_git("status", "--porcelain"))}


def _ask_git(*words: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
