"""Streams on Ray: Ray Data reads and encodes for each worker what a run in one process reads itself."""

from __future__ import annotations

import pytest
from test_cli import place, words  # noqa: F401  (a fixture)
from test_ray import run, session  # noqa: F401  (a fixture)
from test_stream import TASK, write_rows

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.parametrize("mix", ["2"])
def test_two_workers_give_the_losses_of_one_process(mix, place, session):  # noqa: F811
    write_rows(place, {"en": 170, "de": 49}, 16, together=True)
    (place / "mytask.yaml").write_text(TASK % "train")
    more = ["train.languages=[en,de]", "seeds=1", "train.epochs=2", "train.batch_size=8", f"data.stream={mix}", "train.patience=null"]
    plain, _ = run(place, *more, f"storage={place}/plain")
    found, _ = run(place, *more, "resources.workers=2", f"storage={place}/ray")
    assert found[0]["losses"] == pytest.approx(plain[0]["losses"], rel=1e-4)
    assert found[0]["scores"] == plain[0]["scores"]
    assert found[0]["cell"] == plain[0]["cell"]
