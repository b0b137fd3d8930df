"""`raypft report` on the folder of a campaign: tables of what is finished, without running anything."""

from __future__ import annotations

import pytest
import yaml
from test_campaign import small
from test_cli import place  # noqa: F401  (a fixture)

from raypft.campaigns.campaign import Row
from raypft.campaigns.load import load_campaign
from raypft.campaigns.state import CampaignState, reopened
from raypft.cli.app import report
from raypft.errors import UserError
from raypft.runs.prepare import prepare
from raypft.scale.run import run_jobs


def test_report_writes_a_campaigns_tables_from_its_finished_cells(place, capsys):  # noqa: F811
    campaign = load_campaign(small(place, search=None))
    campaign = campaign.model_copy(
        update={"rows": {**campaign.rows, "Later": Row(recipe="profit", set={"train.lr": 0.5})}}
    )
    state = CampaignState(campaign)
    state.write_campaign()
    assert reopened(campaign.folder) == campaign
    run_jobs([prepare(next(campaign.table_cells()).resolved())], lambda event: None)
    report([campaign.folder])
    text = capsys.readouterr().out
    assert "**accuracy**" in text
    assert "| row | mytask |" in text
    assert "| Plain | " in text
    assert "| Later | - |" in text
    assert (campaign.folder / "table.md").read_text() == text


def test_report_refuses_a_folder_that_is_no_campaign_or_has_been_moved(place, tmp_path):  # noqa: F811
    campaign = load_campaign(small(place))
    with pytest.raises(UserError, match=r"holds no campaign\.yaml; give folders of campaigns"):
        reopened(campaign.folder)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "campaign.yaml").write_text(
        yaml.safe_dump(campaign.model_dump(mode="json", exclude_none=True), sort_keys=False)
    )
    with pytest.raises(UserError, match="call raypft from where that is its folder"):
        reopened(moved)
