"""States of prompts on disk: a file for all that decides them, written whole, never changed, and mapped into memory.

Any number of processes may read and write a folder: whoever comes last puts the same states in place of the same. A
file that is not what its name says is made again; other files are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from raypft.errors import UserError

FORMAT = "raypft states 1"
KILLED = 3600
"""Seconds after which a file that no one has written to is no more being written."""
PARTIAL = f"{'[0-9a-f]' * 64}.{'[0-9a-f]' * 32}.partial"


class StatesFolder:
    """A folder of states, [B, T, H] a key; a key is anything whose `repr` says all that decides them.

    What processes that were killed left half written is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for left in folder.glob(PARTIAL):
            with contextlib.suppress(OSError):  # another process may have removed it
                if time.time() - left.stat().st_mtime > KILLED:
                    left.unlink()

    def has(self, key: Any) -> bool:
        """Whether there is a file for a key, whole or not."""
        return self._path(key).is_file()

    def read(self, key: Any) -> Tensor | None:
        """The states under a key; None where there are none, or not those that were written."""
        try:
            with safe_open(path := self._path(key), "pt") as file:
                about, states = file.metadata() or {}, file.get_tensor("states")
        except (OSError, SafetensorError):
            return None
        whole = about == {"format": FORMAT, "key": path.stem, "content": _digest(states)}
        return states if whole else None

    def write(self, key: Any, states: Tensor) -> Tensor:
        """Keep states under a key; the same, as they lie on disk.

        Raises:
            UserError: they can't be written.
        """
        path = self._path(key)
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        about = {"format": FORMAT, "key": path.stem, "content": _digest(states)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"states": states.contiguous()}, partial, about)
            with safe_open(partial, "pt") as file:
                written = file.get_tensor("states")
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise UserError(
                f"train.cache_folder: {self.folder} can't be written: {getattr(error, 'strerror', None) or error}; "
                "give another folder, or leave the key out"
            ) from None
        return written

    def _path(self, key: Any) -> Path:
        return self.folder / f"{hashlib.sha256(repr((FORMAT, key)).encode()).hexdigest()}.safetensors"


def _digest(states: Tensor) -> str:
    content = states.detach().contiguous().view(torch.uint8).numpy().data
    return hashlib.blake2b(content, digest_size=16).hexdigest()
