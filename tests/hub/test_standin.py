"""The stand-in answers as the libraries expect: models, data sets, commits, refusals, uploads."""

from __future__ import annotations

import io
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

FILES = {"config.json": b"{}", "deep/er/model.safetensors": bytes(range(200))}


def parquet(rows: dict[str, list]) -> bytes:
    """A Parquet file's bytes."""
    stream = io.BytesIO()
    pa_parquet.write_table(pa.table(rows), stream)
    return stream.getvalue()


def test_a_snapshot_of_each_commit(hub_here):
    first = hub_here.add("o/m", FILES)
    second = hub_here.add("o/m", {**FILES, "config.json": b"[]"})
    hub_here.add("o/m", {"config.json": b"0"}, revision="refs/pr/1")
    for revision, commit, content in ((None, second, "[]"), (first, first, "{}"), (first[:40], first, "{}")):
        folder = snapshot_download("o/m", revision=revision)
        assert folder.endswith(commit)
        with open(f"{folder}/config.json") as file:
            assert file.read() == content
    with open(hf_hub_download("o/m", "config.json", revision="refs/pr/1")) as file:
        assert file.read() == "0"
    with open(f"{folder}/deep/er/model.safetensors", "rb") as file:
        assert file.read() == FILES["deep/er/model.safetensors"]
    assert hub_here.fetched().count("deep/er/model.safetensors") == 1


def test_what_is_not_there_or_not_open(hub_here, monkeypatch):
    hub_here.add("o/gated", FILES, gated=True, readers={"hf_known"})
    hub_here.add("o/private", FILES, private=True, readers={"hf_known"})
    hub_here.tokens = {"hf_known": "me", "hf_other": "you"}
    for name, revision, error in (
        ("o/none", None, RepositoryNotFoundError),
        ("o/private", None, RepositoryNotFoundError),
        ("o/gated", None, GatedRepoError),
        ("o/gated", "none", RevisionNotFoundError),
    ):
        for token in (None, "hf_other"):
            with pytest.raises(error):
                snapshot_download(name, revision=revision, token=token)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("o/gated", "none.json", token="hf_known")
    with pytest.raises(HfHubHTTPError):
        HfApi().whoami(token="hf_unknown")
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    assert snapshot_download("o/gated")
    assert snapshot_download("o/private")


def test_data_sets_by_configuration_and_by_path(hub_here):
    from datasets import load_dataset

    card = "configs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n" for name in ("en", "de")
    )
    files = {f"{name}/train-0.parquet": parquet({"text": [name, "x"]}) for name in ("en", "de")}
    hub_here.add("o/d", {"README.md": f"---\n{card}---\n".encode(), **files}, kind="datasets")
    converted = {"default/train/0.parquet": parquet({"text": ["converted"]})}
    hub_here.add("o/d", converted, revision="refs/convert/parquet", kind="datasets")
    rows = load_dataset("o/d", "de", split="train")
    assert rows["text"][:] == ["de", "x"]
    assert hub_here.fetched() == ["README.md", "de/train-0.parquet"]
    system = HfFileSystem()
    (path,) = system.glob("datasets/o/d@refs/convert/parquet/default/*/*.parquet")
    with system.open(path) as file:
        assert pa_parquet.read_table(file).to_pydict() == {"text": ["converted"]}
    refs = HfApi().list_repo_refs("o/d", repo_type="dataset")
    assert [ref.name for ref in refs.branches] == ["main"]
    assert [ref.name for ref in refs.converts] == ["refs/convert/parquet"]


def test_an_upload_is_read_back(hub_here, tmp_path):
    hub_here.tokens = {"hf_known": "me"}
    for path, content in FILES.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_bytes(content)
    api = HfApi(token="hf_known")
    assert api.create_repo("me/new", private=True) == f"{hub_here.url}/me/new"
    commit = api.upload_folder(repo_id="me/new", folder_path=tmp_path / "out")
    assert {path: hub_here.repos["models", "me/new"].commits[commit.oid][path] for path in FILES} == FILES
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("me/new")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("you/new")
    assert {access.token for access in hub_here.log} == {None, "hf_known"}


def test_a_process_of_its_own(hub):
    hub.add("o/m", FILES)
    code = "from huggingface_hub import snapshot_download as get; print(get('o/m'))"
    done = subprocess.run([sys.executable, "-c", code], env=hub.env, capture_output=True, text=True, check=True)
    assert str(hub.home) in done.stdout
    assert sorted(hub.fetched()) == ["config.json", "deep/er/model.safetensors"]


def test_a_hub_that_is_out_of_order(hub_here):
    hub_here.add("o/m", FILES)
    hub_here.broken = 503
    with pytest.raises((HfHubHTTPError, OfflineModeIsEnabled), match="503"):
        HfApi().model_info("o/m")
    assert [(access.method, access.status) for access in hub_here.log] == [("GET", 503)]
