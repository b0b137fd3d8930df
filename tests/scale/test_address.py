"""A cluster's address at which no one listens is told within seconds."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest
from test_campaign import small
from test_cli import call, place  # noqa: F401  (a fixture)

from raypft.errors import UserError
from raypft.scale import address as addresses
from raypft.scale.address import HELLO, check_address
from raypft.scale.session import ray_session


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


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"HTTP/1.1 400 Bad Request", "something other than Ray listens there"), (None, "timed out")],
)
def test_something_else_that_listens_is_one_line(answer, reason, monkeypatch):
    monkeypatch.setattr(addresses, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            with server.accept()[0] as connection:
                assert connection.recv(len(HELLO)) == HELLO
                if answer:
                    connection.sendall(answer)
                with suppress(ConnectionError):
                    connection.recv(1)

        served = threading.Thread(target=serve)
        served.start()
        with pytest.raises(UserError, match=f"^RAY_ADDRESS: no Ray cluster at 127.0.0.1:{port}: {reason}; start it, "):
            check_address(f"127.0.0.1:{port}")
        served.join()


@pytest.mark.parametrize("verb", ["tune", "plan"])
def test_a_campaign_is_refused_before_anything_is_trained(free_port, verb, place, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    command = [verb, small(place, search=None)]
    code = call(monkeypatch, *command)
    both = capsys.readouterr()
    assert f"RAY_ADDRESS: no Ray cluster at 127.0.0.1:{free_port}: " in both.out + both.err
    assert code == 2 or verb == "plan"
    assert not list(place.rglob("result.json"))
    assert not list(place.rglob("state.pt"))


def test_names_are_left_to_ray():
    for name in (None, "auto", "local"):
        check_address(name)
