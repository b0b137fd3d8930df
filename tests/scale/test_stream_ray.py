"""Streams on Ray: Ray Data reads and encodes for each worker what a run in one process reads itself."""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from test_cli import place, words  # noqa: F401  (a fixture)
from test_ray import run, session  # noqa: F401  (a fixture)
from test_streaming_order import write_rows

from raypft.errors import UserError
from raypft.scale.data import RayFlow
from raypft.training.loader import Share

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.parametrize("mix", ["2"])
def test_two_workers_give_the_losses_of_one_process(mix, place, session):  # noqa: F811
    write_rows(place, {"en": 170, "de": 49}, 16, together=True)
    more = [
        "train.languages=[en,de]",
        "seeds=1",
        "train.epochs=2",
        "train.batch_size=8",
        f"data.stream={mix}",
        "train.patience=null",
    ]
    plain, _ = run(place, *more, f"storage={place}/plain")
    results, _ = run(place, *more, "resources.workers=2", f"storage={place}/ray")
    assert results[0]["losses"] == pytest.approx(plain[0]["losses"], rel=1e-4)
    assert results[0]["scores"] == plain[0]["scores"]
    assert results[0]["cell"] == plain[0]["cell"]


def test_what_ray_data_meets_is_one_line_and_an_epoch_may_be_over(place, session):  # noqa: F811
    """A row with a label outside the set ends the run at once; a flow that begins at an epoch's end gives nothing."""
    write_rows(place, {"en": 70}, 16, together=True)
    table = pa_parquet.read_table(place / "train.parquet")
    labels = pa.array([*table["label"].to_pylist()[:-1], "great"])
    pa_parquet.write_table(
        table.set_column(table.column_names.index("label"), "label", labels), place / "train.parquet", row_group_size=16
    )
    with pytest.raises(UserError, match=r'^data: .*train.parquet.* "great"'):
        run(place, "seeds=1", "data.stream=uniform", "resources.workers=1")
    assert list(RayFlow(cast(Any, None), "", 70)(Share(0, 0, 7, 10, 0, 1))) == []
