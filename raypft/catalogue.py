"""A folder is a registry: `method: gnnavi` is raypft/methods/gnnavi.py. A user's own file or module does as well.

`method: path/to/bitfit.py` and `method: my_package.bitfit` name a file or an importable module that keeps the same rule
as the files of the folder: what is used has one agreed name in it, the folder's hook.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from raypft.errors import UserError, nearest


@dataclass(frozen=True)
class Catalogue:
    """The plug-ins of a folder.

    part: the YAML key that names one of them, for messages; package: the folder as a module; hook: what a plug-in's
    file calls that which is used.
    """

    part: str
    package: str
    hook: str

    @property
    def folder(self) -> Path:
        """Where the shipped plug-ins lie."""
        module = sys.modules[self.package]
        assert module.__file__ is not None
        return Path(module.__file__).parent

    def names(self) -> list[str]:
        """The names of the shipped plug-ins: the files of the folder, `base` and those with an underscore aside."""
        stems = [path.stem for path in self.folder.glob("*.py")]
        return sorted(stem for stem in stems if stem != "base" and not stem.startswith("_"))

    def load(self, name: str) -> Any:
        """What a plug-in offers, by its name, path or module.

        Raises:
            UserError: nothing of that name (the nearest is named); no such file or module; it can't be imported; it
            lacks the hook, or the hook is no whole subclass of the folder's.
        """
        if name in self.names():
            return getattr(importlib.import_module(f"{self.package}.{name}"), self.hook)
        if not is_own(name):
            raise UserError(f'{self.part}: "{name}" is unknown; {nearest(name, self.names())}')
        plug_in = load_own(self.part, name, self.hook)
        base = getattr(importlib.import_module(f"{self.package}.base"), self.hook)
        if not (isinstance(plug_in, type) and issubclass(plug_in, base)):
            raise UserError(f"{self.part}: {name}: {self.hook} is no subclass of {base.__module__}.{self.hook}")
        if inspect.isabstract(plug_in):
            lacking = ", ".join(sorted(plug_in.__abstractmethods__))
            raise UserError(f"{self.part}: {name}: {self.hook} lacks {lacking}; see {base.__module__}.{self.hook}")
        return plug_in

    def own_hash(self, name: str) -> str:
        """Hash of a user's own file, 16 hex digits; empty for a shipped plug-in, whose `numerics` says when numbers
        change."""
        return "" if name in self.names() else own_hash(self.part, name)

    def label(self, name: str) -> str:
        """What tables, folders and cards call a plug-in."""
        return name if name in self.names() else own_name(name)

    def about(self, name: str) -> str:
        """The first paragraph of a shipped plug-in's docstring as one line, read without running it."""
        text = ast.get_docstring(_syntax(self.folder / f"{name}.py")) or ""
        return " ".join(text.partition("\n\n")[0].split())

    def declared(self, name: str, attribute: str) -> Any:
        """A class attribute that a shipped plug-in gives as a literal, read without running it; None where it gives
        none."""
        for node in _syntax(self.folder / f"{name}.py").body:
            for statement in node.body if isinstance(node, ast.ClassDef) else []:
                target = (
                    statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
                )
                if isinstance(target, ast.Name) and target.id == attribute:
                    return ast.literal_eval(statement.value)  # type: ignore[attr-defined]
        return None


def is_own(name: str) -> bool:
    """Whether a name is a path to a Python file or a dotted module."""
    return name.endswith(".py") or ("." in name and all(part.isidentifier() for part in name.split(".")))


def own_name(name: str) -> str:
    """What tables and folders call a user's own plug-in: the file's or module's last part."""
    return Path(name).stem if name.endswith(".py") else name.rpartition(".")[2]


def own_hash(part: str, name: str) -> str:
    """Hash of a user's own file, 16 hex digits.

    Raises:
        UserError: there is no such file or module.
    """
    return hashlib.sha256(own_path(part, name).read_bytes()).hexdigest()[:16]


def load_own(part: str, name: str, hook: str) -> Any:
    """What a user's own file or module calls `hook`.

    Args:
        part: the YAML key that names it, for messages.

    Raises:
        UserError: no such file or module; it can't be imported; it lacks the hook.
    """
    module = _own_module(part, name)
    if not hasattr(module, hook):
        raise UserError(f"{part}: {name} has no {hook}; expected its class or function under that name")
    return getattr(module, hook)


@functools.lru_cache(maxsize=64)
def _syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def own_path(part: str, name: str) -> Path:
    """The file of a user's own plug-in.

    Raises:
        UserError: there is none, or the package of its module can't be imported.
    """
    if name.endswith(".py"):
        path = Path(os.path.expanduser(name))
        if not os.path.isfile(path):
            raise UserError(f"{part}: no file {path}; give the path of a Python file")
        return path
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        spec = None
    except Exception as error:  # whatever the user's package raises
        raise _not_imported(part, name, error) from None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"{part}: no module {name}; install it, or give the path of a Python file")
    return Path(spec.origin)


def _own_module(part: str, name: str) -> ModuleType:
    """A user's own module, imported once for each content of its file."""
    path = own_path(part, name)
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    called = f"raypft_own_{path.stem}_{content}" if name.endswith(".py") else name
    if called in sys.modules:
        return sys.modules[called]
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(called, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[called] = module  # pydantic and dataclasses look their annotations up there
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        sys.modules.pop(called, None)
        raise _not_imported(part, name, error) from None


def _not_imported(part: str, name: str, error: Exception) -> UserError:
    return UserError(f"{part}: {name} can't be imported: {told(error)}")


def told(error: Exception) -> str:
    """What a user's own code raised, as part of a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300] or 'no reason given'}"
