"""A cluster's address at which no one listens is told within seconds."""

from __future__ import annotations

import socket

import pytest

from raypft.errors import UserError
from raypft.scale.session import check_address, ray_session


@pytest.fixture
def free_port() -> int:
    """A port that no one listens at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.parametrize("before", ["", "ray://"])
def test_an_address_no_one_listens_at_is_one_line(free_port, monkeypatch, before):
    address = f"{before}127.0.0.1:{free_port}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UserError, match=f"^RAY_ADDRESS: no Ray cluster at {address}: .*refused; start it, "),
        ray_session(),
    ):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:port", "127.0.0.1:99999"])
def test_a_port_that_is_none_is_one_line(address):
    with pytest.raises(UserError, match=f"^RAY_ADDRESS: no Ray cluster at {address}: "):
        check_address(address)


def test_an_address_someone_listens_at_and_names_are_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")
    for name in (None, "auto", "local"):
        check_address(name)
