"""Tests marked `cluster` start heads and nodes; they run only when asked for: pytest -m cluster."""


def pytest_collection_modifyitems(config, items):
    """Leave cluster tests out unless the marker is named."""
    if "cluster" in (config.option.markexpr or ""):
        return
    out = [item for item in items if item.get_closest_marker("cluster")]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
