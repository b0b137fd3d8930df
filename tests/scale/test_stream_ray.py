"""Streams on Ray: Ray Data reads and encodes for each worker what a run in one process reads itself."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import yaml
from test_cli import TASK, place, words  # noqa: F401  (a fixture)
from test_ray import run, session  # noqa: F401  (a fixture)
from test_streaming_order import write_rows

from raypft.errors import UserError
from raypft.scale.data import RayFlow
from raypft.training.flow import Share

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


def test_workers_read_a_stream_from_the_hub(place, hub):  # noqa: F811
    """In processes of their own: at the commit that the run began with, without asking for it."""
    task = yaml.safe_load(TASK)
    task["sources"] = {"hub": {"hub": "me/reviews"}}
    (place / "mytask.yaml").write_text(yaml.safe_dump(task))
    pa_parquet.write_table(pa_parquet.read_table(place / "train.parquet"), place / "train.parquet", row_group_size=8)
    files = {f"{name}.parquet": (place / f"{name}.parquet").read_bytes() for name in ("train", "validation", "test")}
    hub.add("me/reviews", files, kind="datasets")
    found = []
    for workers in (0, 2):
        command = words(
            place,
            "seeds=1",
            "train.epochs=2",
            "train.lr=1e-3",
            "train.batch_size=8",
            "data.root=null",
            "data.stream=uniform",
            f"storage={place}/{workers}",
            f"resources.workers={workers}",
        )
        hub.log.clear()
        done = subprocess.run(
            [sys.executable, "-m", "raypft.cli", "run", *command], env=hub.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\n") <= 1  # what is fetched
        (path,) = place.glob(f"{workers}/*/seed-0/result.json")
        found.append(json.loads(path.read_text()))
        parts = [access for access in hub.log if access.status == 206]
        assert len(parts) > 4
        assert sum(access.path.endswith("/revision/main") for access in hub.log) == 1
    assert found[0]["cell"] == found[1]["cell"]
    assert found[1]["losses"] == pytest.approx(found[0]["losses"], rel=1e-4)
