"""Addresses, tokens and versions of a job server, without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from here import exit_code

from raypft.cluster import up
from raypft.cluster.client import Address, JobServer, Unreachable, find_address, find_token
from raypft.cluster.definition import load
from raypft.errors import UserError

FOLDER = Path(__file__).parents[2] / "cluster"


def test_the_address_is_the_users_first_word(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    local = load(FOLDER / "local.yaml")
    assert find_address("http://mine:1/", local) == Address("http://mine:1", "--address")
    assert find_address(None, local) == Address("http://127.0.0.1:28265", "cluster raypft-local")
    assert find_address(None, None) == Address("http://elsewhere:8265", "$RAY_ADDRESS")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match=r'address "10.0.0.1:6379" \(\$RAY_ADDRESS\): expected the job server\'s URL'):
        find_address(None)
    monkeypatch.delenv("RAY_ADDRESS")
    assert find_address(None).source == "the default"


def test_a_token_is_found_as_ray_finds_it_and_never_travels_in_the_clear(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert find_token() == (None, f"no $RAY_AUTH_TOKEN and no file {tmp_path / 'token'}")
    up.make_token()
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    token, source = find_token()
    assert (len(token or ""), source) == (64, str(tmp_path / "token"))
    up.make_token()
    assert find_token()[0] == token
    with pytest.raises(
        UserError, match=r"http://192.0.2.1:8265 \(--address\): the token would travel unencrypted; use https, a tunnel"
    ):
        JobServer(Address("http://192.0.2.1:8265", "--address"))


def test_nobody_at_an_address_is_one_line_and_code_69(capsys):
    assert exit_code("submit", "--address", "http://127.0.0.1:1", "--", "list", "recipes") == 69
    said = capsys.readouterr().err
    assert said.startswith("raypft: no job server at http://127.0.0.1:1 (--address): ")
    assert said.count("\n") == 1
    assert Unreachable.code == 69


def test_another_ray_on_the_cluster_is_refused():
    server = SimpleNamespace(ray_version="2.59.0", address=Address("http://x", "--address"))
    with pytest.raises(
        UserError, match=r"http://x runs Ray 2.59.0, here is 2.60.0; install raypft with the cluster's version"
    ):
        JobServer.check_version(server)  # type: ignore[arg-type]
