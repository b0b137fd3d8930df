"""A task of the user's own, whose files lie where a test writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raypft.data.origin import Origin, choose
from raypft.tasks.load import load_task


@pytest.fixture
def origin(tmp_path):
    """The origin of a task of a kind whose files lie below tmp_path."""

    def origin(values: dict, root: Path | str = tmp_path, **source) -> Origin:
        text = {"tags": "{tokens}", "span": "{question} {context}"}.get(values["kind"], "{text}")
        whole = {"about": "mine", "languages": ["en", "de"], **values}
        whole["sources"] = {"mine": {"files": {"train": "train", "test": "test"}, **source}}
        whole["patterns"] = {"p": {"text": text, "source": "mine"}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(whole))
        return choose(load_task(str(tmp_path / "mine.yaml")), None, str(root))

    return origin
