"""The working directory as one zip file for the cluster: what git knows or would know, within the job server's limit.

The server takes 100 MiB and says so only after everything was zipped and sent, so sizes are added up first.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from raypft.errors import UserError

LIMIT = 90 * 2**20
LEFT_OUT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".pyc")
LEFT_OUT_FOLDERS = {
    ".git",
    ".venv",
    ".ci-venv",
    "venv",
    "runs",
    "wandb",
    "__pycache__",
    "node_modules",
    ".pytest_cache",
    ".ruff_cache",
}


@dataclass(frozen=True)
class Package:
    """A zip file, named by its content, and what it was made of."""

    content: bytes
    commit: str
    dirty: bool
    num_files: int

    @property
    def sha(self) -> str:
        """16 hex digits over the content."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    @property
    def name(self) -> str:
        """As Ray names packages."""
        return f"_ray_pkg_{self.sha}.zip"


def listed(folder: Path) -> list[Path]:
    """The files of a folder that a package takes: git's, and new ones it doesn't ignore; all where there is no git. No
    link leads out of the folder."""
    told = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = told.split("\0") if told is not None else [str(path.relative_to(folder)) for path in folder.rglob("*")]
    paths = {
        folder / name
        for name in names
        if name and not LEFT_OUT_FOLDERS & set(Path(name).parts) and not name.endswith(LEFT_OUT_ENDINGS)
    }
    root = folder.resolve()
    return sorted(path for path in paths if path.is_file() and path.resolve().is_relative_to(root))


def pack(folder: Path) -> Package:
    """The package of a folder; the same files give the same bytes.

    Raises:
        UserError: no such folder; more than 90 MiB, with the largest files.
    """
    if not folder.is_dir():
        raise UserError(f"package: no folder {folder}; give --working-dir")
    paths = listed(folder)
    sizes = {path: path.stat().st_size for path in paths}
    total = sum(sizes.values())
    if total > LIMIT:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:10]
        shown = ", ".join(f"{path.relative_to(folder)} {sizes[path] / 2**20:.1f}" for path in largest)
        raise UserError(
            f"package: {folder} holds {total / 2**20:.0f} MiB, the job server takes {LIMIT // 2**20}; "
            f"largest, in MiB: {shown}; "
            "name them in .gitignore, or put the tree where nodes can read it and give --package-uri"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # dated 1980: a date would change the content
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    commit = _git(folder, "rev-parse", "HEAD")
    return Package(
        buffer.getvalue(), (commit or "none").strip(), bool(_git(folder, "status", "--porcelain", ".")), len(paths)
    )


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
