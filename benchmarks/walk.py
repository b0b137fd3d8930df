"""How far a reader walks: the functions of raypft that one `raypft run` enters, each at its first call.

    python benchmarks/walk.py run profit task=… backbone=…

Prints files entered, functions, changes of file (and those back into a file left before), classes whose code is
entered, and how often some functions are called.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

COUNTED = ("load_task", "part_config", "load_job", "resolve")


def home() -> Path:
    """The package's folder."""
    import raypft  # noqa: PLC0415

    return Path(raypft.__file__).parent


def walked(words: list[str]) -> tuple[list[CodeType], Counter[str]]:
    """The code entered by a command, in the order of first calls; calls of each function by name."""
    from raypft.cli import main  # noqa: PLC0415

    folder = str(home())
    order: dict[CodeType, None] = {}
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder) and not code.co_name.startswith("<"):
            order.setdefault(code)
            calls[code.co_name] += 1

    sys.argv = ["raypft", *words]
    sys.setprofile(note)
    try:
        with contextlib.suppress(SystemExit):
            main()
    finally:
        sys.setprofile(None)
    # bodies of classes run at import: nobody follows them
    bodies = {code for code in order if "__qualname__" in code.co_names and "__module__" in code.co_names}
    return [code for code in order if code not in bodies], calls


def main_() -> None:
    """Walk and print."""
    order, calls = walked(sys.argv[1:])
    files = [code.co_filename for code in order]
    changes = [(before, after) for before, after in itertools.pairwise(files) if before != after]
    seen, back = {files[0]}, 0
    for _, after in changes:
        back += after in seen
        seen.add(after)
    rooms = [Path(file).relative_to(home()).parts[0] for file in files]
    moves = sum(before != after for before, after in itertools.pairwise(rooms))
    classes = {code.co_qualname.split(".")[0] for code in order if "." in code.co_qualname.replace(".<locals>", "")}
    print(f"rooms {len(set(rooms))}, changes of room {moves}")
    print(
        f"files {len(set(files))}, functions {len(order)}, changes of file {len(changes)}, back into one left {back}, "
        f"classes {len(classes)}"
    )
    print(", ".join(f"{name} {calls[name]}" for name in COUNTED if name in calls))


if __name__ == "__main__":
    main_()
