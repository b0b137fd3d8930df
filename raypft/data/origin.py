"""Which source of a task is read, and from where: a data set on the hub, local files (also s3:// and the like), the
bundled samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raypft.data import hub
from raypft.errors import UserError, nearest
from raypft.tasks.task import SPLITS, Source, Task


@dataclass(frozen=True)
class Origin:
    """Which source of a task is read, and from where.

    root: folder or URI that its files lie below; shots: of sources that have a file for each number of shots;
    revision: of the hub's data set, instead of the source's.
    """

    task: Task
    name: str
    source: Source
    root: str | None
    shots: int | None = None
    revision: str | None = None

    def base(self, split: str) -> str | None:
        """The folder, URI or data set on the hub that a split lies in; None for bundled samples."""
        name = self.source.hub_of(split)
        if name is None:
            return self.root
        if self.root is not None:
            return f"{self.root}/{name}"
        return hub.place_of(name, self.revision or self.source.revision or "main")


def choose(
    task: Task, name: str | None, root: str | None, shots: int | None = None, revision: str | None = None
) -> Origin:
    """The source to read: the named one; else local files if a root is given; else the task's first.

    Raises:
        UserError: the task has no such source, a source of files needs `data.root`, or a revision of nothing that has
            one.
    """
    if name is None:
        local = [known for known, source in task.sources.items() if source.hub is None]
        name = local[0] if root is not None and local else next(iter(task.sources))
    if name not in task.sources:
        raise UserError(f'data.source: task {task.name} has no source "{name}"; {nearest(name, task.sources)}')
    source = task.sources[name]
    if source.hub is None and root is None:
        root = source.root
    bundled = source.files is not None and all(file.startswith("samples:") for file in source.paths.values())
    if source.hub is None and root is None and not bundled:
        raise UserError(
            f"data.root: source {name} of task {task.name} reads local files; say where, e.g. data.root=../data"
        )
    root = root and os.path.expanduser(root)
    on_hub = root is not None and root.startswith(hub.SCHEME)
    if on_hub and source.hub is not None:
        raise UserError(
            f"data.root: found {root}, but source {name} of task {task.name} names a data set itself; "
            "choose a data.source that reads files, or leave data.root out"
        )
    if revision is not None:
        root = _at_revision(task, name, source, root, revision)
    return Origin(task, name, source, root, shots, revision)


def _at_revision(task: Task, name: str, source: Source, root: str | None, revision: str) -> str | None:
    """The root with the revision in it, where it is a data set on the hub.

    Raises:
        UserError: nothing is read from the hub, more than one data set is, or the root has a revision already.
    """
    told = f"data.revision: found {revision}, but"
    if root is not None and root.startswith(hub.SCHEME):
        dataset, other, folder = hub.parsed(root)
        if other is not None:
            raise UserError(f"{told} data.root says {other}; leave one of them out")
        return hub.place_of(dataset, revision, folder)
    if root is not None or source.hub is None:
        raise UserError(f"{told} source {name} of task {task.name} reads local files here; leave it out")
    if len(set(map(source.hub_of, SPLITS)) - {None}) > 1:
        raise UserError(f"{told} source {name} of task {task.name} reads more than one data set; leave it out")
    return root


def commits(origin: Origin) -> dict[str, str]:
    """The data sets on the hub that an origin reads: each place with its revision to that with its commit.

    Raises:
        UserError: the hub has no such data set or revision, or can't be asked.
    """
    bases = [origin.base(split) for split in SPLITS]
    heads = [hub.parsed(base)[:2] for base in bases if base is not None and base.startswith(hub.SCHEME)]
    places = [hub.place_of(name, revision or "main") for name, revision in dict.fromkeys(heads)]
    with way_out(origin):
        return {place: hub.pinned(place) for place in places}


@contextmanager
def way_out(origin: Origin) -> Iterator[None]:
    """What to do where the hub does not give a data set."""
    try:
        yield
    except hub.Missing as error:
        page = f"; see {origin.source.gated}" if origin.source.gated else ""
        raise UserError(f"{error}{page}; or give local files with data.root=FOLDER") from None
