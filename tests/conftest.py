"""Shared set-up of the tests: one thread, quiet libraries, no hub; tests marked `cluster` run only with -m cluster."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_collection_modifyitems(config, items):
    """Leave cluster tests out unless the marker is named."""
    if "cluster" in (config.option.markexpr or ""):
        return
    out = [item for item in items if item.get_closest_marker("cluster")]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
