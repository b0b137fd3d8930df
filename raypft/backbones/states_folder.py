"""States of prompts on disk: a file for all that decides them, written whole, never changed, and mapped into memory.

Any number of processes may read and write a folder: whoever comes last puts the same states in place of the same. A
file that is not what its name says is made again; other files are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from raypft.errors import UserError
from raypft.storage import owned, remove, remove_left

FORMAT = "raypft states 1"
PARTIAL = f"{'[0-9a-f]' * 64}.{'[0-9a-f]' * 32}.partial"


class StatesFolder:
    """A folder of states, [B, T, H] a key; a key is anything whose `repr` says all that decides them.

    What processes that were killed left half written is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        remove_left(folder, PARTIAL)

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
            with owned(partial), contextlib.ExitStack() as stack:  # the library writes a file beside its own
                stack.callback(remove, partial)
                save_file({"states": states.contiguous()}, file := partial / "states", about)
                with safe_open(file, "pt") as read:
                    written = read.get_tensor("states")
                file.replace(path)
        except (OSError, SafetensorError) as error:
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
