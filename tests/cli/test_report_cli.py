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


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "cut at its end": lambda text: text[:-60],
    "empty": lambda text: b"",
    "garbage": lambda text: b"\x00\xff\x93" * 40,
    "one digit": lambda text: text.replace(b"max_tokens: 32", b"max_tokens: 33"),
    "of another version": lambda text: b"version: 99\n",
    "no rows": lambda text: text.replace(b"rows:", b"raws:"),
    "deep": lambda text: b"[" * 10_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_campaign_is_one_line_that_names_it(place, damage):  # noqa: F811
    campaign = load_campaign(small(place))
    campaign.folder.mkdir(parents=True)
    CampaignState(campaign).write_campaign()
    path = campaign.folder / "campaign.yaml"
    text = path.read_bytes()
    path.write_bytes(DAMAGES[damage](text))
    assert path.read_bytes() != text
    with pytest.raises(UserError) as caught:
        reopened(campaign.folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    CampaignState(campaign).write_campaign()
    assert path.read_bytes() == text


def test_a_damaged_result_leaves_its_cell_open_and_the_others_in_the_table(place):  # noqa: F811
    campaign = load_campaign(small(place, search=None))
    state = CampaignState(campaign)
    plain = next(campaign.table_cells())
    run_jobs([prepare(plain.resolved())], lambda event: None)
    configuration = state.configuration(plain, {})
    for seed in configuration.keys:
        state.note(configuration, seed, "finished")
    path = configuration.folder(1) / "result.json"
    text = path.read_text()
    path.write_text(text.replace('"mean": ', '"mean": 1'))
    told: list[str] = []
    state = CampaignState(campaign, told.append)
    statuses = [(row["seed"], row["status"]) for row in state.rows() if row["row"] == "Plain"]
    assert statuses == [(0, "finished"), (1, "missing")]
    assert told == [f"ledger: {path.parent} holds no whole result of its cell any more; it is looked for elsewhere"]
    path.write_text(text)
    assert [row["status"] for row in CampaignState(campaign).rows() if row["row"] == "Plain"] == ["finished"] * 2
