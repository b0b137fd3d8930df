"""The hub as the rooms meet it: one wait, one line a reason, no token in it, files fetched once."""

from __future__ import annotations

import time

import pytest
from huggingface_hub import constants, get_session

from raypft import hub as our_hub

FILES = {"config.json": b"{}", "model.safetensors": bytes(300_000), "onnx/model.safetensors": bytes(7)}
TOKEN = "hf_" + "x" * 30


def at_top(paths: list[str]) -> list[str]:
    """The files that are wanted."""
    return [path for path in paths if "/" not in path]


def line_of(call, *names) -> str:
    """What is told where a call fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever the library raises)
        call(*names)
    return our_hub.reason(caught.value, *names[:2])


def test_a_commit_is_asked_for_once_and_its_files_fetched_once(hub_here, capsys):
    first, second = hub_here.add("o/m", FILES, revision="v1"), hub_here.add("o/m", FILES)
    assert our_hub.commit_of("o/m", "v1") == first
    for _ in range(2):
        assert our_hub.commit_of("o/m") == second
    assert len(hub_here.log) == 2
    hub_here.add("o/m", {})
    assert our_hub.commit_of("o/m") == second
    folder = our_hub.snapshot("o/m", second, at_top)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(hub_here.fetched()) == ["config.json", "model.safetensors"]
    asked = len(hub_here.log)
    assert our_hub.snapshot("o/m", second, at_top) == folder
    assert len(hub_here.log) == asked
    assert capsys.readouterr().err == f"raypft: fetching o/m at {second[:12]} from the hub: 2 files, 0.3 MB\n"


def test_an_interrupted_download_is_finished(hub_here):
    commit = hub_here.add("o/m", FILES)
    folder = our_hub.snapshot("o/m", commit, at_top)
    (folder / "model.safetensors").unlink()
    assert (our_hub.snapshot("o/m", commit, at_top) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "revision", "line"),
    [
        ("o/none", None, "the hub has no model o/none (or HF_TOKEN may not see it)"),
        ("o/m", "v9", 'o/m has no revision "v9" on the hub; see {hub}/o/m/tree/main'),
        ("o/gated", None, "o/gated is gated; accept its licence at {hub}/o/gated and set HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses(hub_here, name, revision, line):
    hub_here.add("o/m", FILES)
    hub_here.add("o/gated", FILES, gated=True)

    def get(name, revision):
        our_hub.snapshot(name, our_hub.commit_of(name, revision), at_top)

    assert line_of(get, name, revision) == line.format(hub=hub_here.url)


def test_no_token_is_told(hub_here, monkeypatch):
    hub_here.add("o/m", FILES)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert line_of(our_hub.commit_of, "o/m") == "the hub does not know the token in HF_TOKEN (or of hf auth login)"
    told = our_hub.reason(ValueError(f"Illegal header value b'Bearer {TOKEN} x'"), "o/m")
    assert told == "o/m can't be read from the hub: Illegal header value b'(token)'"
    assert TOKEN not in our_hub.reason(ValueError(f"the token {TOKEN} is no good"), "o/m")


def test_a_hub_that_refuses_or_is_silent_is_waited_for_once(silent_port, closed_port, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(our_hub, "FIRST", 1.0)
    for port, why in ((closed_port, "[Errno 111] Connection refused"), (silent_port, "no answer within 1 seconds")):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        begun = time.monotonic()
        for name in ("o/m", "o/n", "o/o"):
            expected = f"{name} is not in the local cache and the hub can't be reached: 127.0.0.1: {why}"
            assert line_of(our_hub.commit_of, name) == expected
            assert line_of(lambda name: our_hub.snapshot(name, "0" * 40, at_top), name) == expected
        assert time.monotonic() - begun < 2.5
        monkeypatch.setattr(our_hub, "FORGOTTEN", 0.0)
        assert our_hub.unreachable() is None
        monkeypatch.setattr(our_hub, "FORGOTTEN", 300.0)


def test_a_hub_out_of_order_is_not_asked_again(hub_here):
    hub_here.broken = 503
    assert line_of(our_hub.commit_of, "o/m").endswith("can't be reached: 127.0.0.1: it answers 503")
    assert line_of(our_hub.commit_of, "o/n").endswith("can't be reached: 127.0.0.1: it answers 503")
    assert len(hub_here.log) == 1


def test_what_is_cached_is_used_where_the_hub_is_away_or_switched_off(hub_here, monkeypatch, closed_port, capsys):
    commit = hub_here.add("o/m", FILES)
    folder = our_hub.snapshot("o/m", our_hub.commit_of("o/m"), at_top)
    capsys.readouterr()
    our_hub._commits.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert our_hub.snapshot("o/m", our_hub.commit_of("o/m"), at_top) == folder
    assert capsys.readouterr().err == ""
    assert line_of(our_hub.commit_of, "o/n").endswith("can't be reached: HF_HUB_OFFLINE is set")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert our_hub.snapshot("o/m", our_hub.commit_of("o/m"), at_top) == folder
    told = capsys.readouterr().err
    assert told.startswith(
        "raypft: the hub can't be reached (127.0.0.1: [Errno 111] Connection refused); what is cached"
    )
    assert told.count("\n") == 1
    assert folder.name == commit


def test_only_the_first_answer_is_bounded_not_a_long_download(hub_here, monkeypatch, tmp_path):
    """Nor what the hub needs to take an upload."""
    hub_here.add("o/m", FILES)
    hub_here.tokens = {TOKEN: "me"}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(our_hub, "FIRST", 0.5)
    monkeypatch.setattr(our_hub, "TRUSTED", 0.0)
    hub_here.slow = 1.0
    with get_session().stream("GET", f"{hub_here.url}/o/m/resolve/main/model.safetensors") as response:
        assert len(response.read()) == len(FILES["model.safetensors"])
    assert get_session().get(f"{hub_here.url}/o/m/resolve/main/model.safetensors").content == FILES["model.safetensors"]
    assert get_session().post(f"{hub_here.url}/api/validate-yaml", json={}).status_code == 200
    assert our_hub.unreachable() is None
