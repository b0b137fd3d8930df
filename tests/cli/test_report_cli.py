"""`raypft report` on the folder of a campaign: tables of what is finished, without running anything."""

from __future__ import annotations

import json
import re

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


def test_a_campaigns_report_is_a_folder_whose_numbers_lead_to_its_cells(place, tmp_path, capsys):  # noqa: F811
    campaign = load_campaign(small(place, search=None))
    state = CampaignState(campaign)
    state.write_campaign()
    with pytest.raises(UserError, match="nothing is finished yet"):
        report([campaign.folder], out=tmp_path / "out")
    run_jobs([prepare(next(campaign.table_cells()).resolved())], lambda event: None)
    report([campaign.folder], out=tmp_path / "out")
    assert capsys.readouterr().out.startswith(f"written to {tmp_path}/out/index.html")
    page = (tmp_path / "out/index.html").read_text()
    links = re.findall(r'href="([^"#]+/predictions\.parquet)"', page)
    assert len(links) == 2 * 2, "two rows are of one configuration here"
    assert all((tmp_path / "out" / link).is_file() for link in links)
    result = json.loads(next((place / "runs").glob("*/seed-0/result.json")).read_text())
    assert result["cpu_seconds"] > 0
    for told in (f"<dd>{result['manifest']}</dd>", f"<dd>{result['test_rows']}</dd>", "recipe: profit", "torch 2."):
        assert told in page
    with pytest.raises(UserError, match="--out takes one campaign, or runs; found 2 folders"):
        report([campaign.folder, campaign.folder], out=tmp_path / "out")


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
