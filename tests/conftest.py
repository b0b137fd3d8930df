"""Shared set-up of the tests: one thread, quiet libraries, no hub but the stand-in that a test asks for; tests marked
`cluster` run only with -m cluster."""

import gc
import os
import signal
from collections import Counter

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it


def pytest_collection_modifyitems(config, items):
    """Leave cluster tests out unless the marker is named."""
    if "cluster" in (config.option.markexpr or ""):
        return
    out = [item for item in items if item.get_closest_marker("cluster")]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    if hasattr(config, "workerinput"):  # one of several processes
        _longest_first(items)


def _longest_first(items):
    """Files that may take long begin first, so that none runs alone in the end: those with a time limit of their own,
    then those with many tests. Several processes take them in this order (`--dist loadfile --no-loadscope-reorder`)."""
    limited = {item.path for item in items if item.get_closest_marker("timeout")}
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in limited, -counts[item.path], str(item.path)))


def pytest_collection_finish():
    """What is imported and collected lives to the end: no search for garbage looks through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine, empty; a subprocess has it with env=hub.env, this process after hub.patch(monkeypatch)."""
    from standin import serving

    with serving(tmp_path / "hf") as running:
        yield running


@pytest.fixture
def hub_here(hub, monkeypatch):
    """The same, already the hub of this process."""
    from huggingface_hub import close_session

    hub.patch(monkeypatch)
    yield hub
    close_session()
