"""Clusters on this machine: who starts them, heads that fail, ports, and ending what was started and nothing else."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from here import exit_code, free_port

from raypft.cluster import up
from raypft.cluster.definition import load
from raypft.cluster.processes import alive, end, processes, started_by
from raypft.errors import UserError

FOLDER = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize("verb", ["up", "down"])
def test_clusters_of_others_are_not_started_from_here(verb, capsys):
    assert exit_code("cluster", verb, str(FOLDER / "aws.yaml")) == 2
    told = f"found kind aws; only local and fake clusters live on this machine; use: ray {verb} cluster/rendered/"
    assert f"cluster {verb}: {told}" in capsys.readouterr().err
    assert exit_code("cluster", verb, str(FOLDER / "kubernetes.yaml")) == 2
    assert "use: kubectl apply" in capsys.readouterr().err


def test_a_head_that_ends_at_once_is_told_with_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setattr(
        up, "head_command", lambda definition, folder: [sys.executable, "-c", "print('no room'); raise SystemExit(3)"]
    )
    with pytest.raises(UserError, match="cluster up: the head of raypft-local ended with 3: no room"):
        up.up(load(FOLDER / "local.yaml"))
    assert not up.state_file("raypft-local").exists()


def test_ending_ends_a_tree_with_its_own_sessions_and_nothing_else():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    tree = "import subprocess, sys, time; "
    tree += f"subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True); time.sleep(60)"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    leader = subprocess.Popen([sys.executable, "-c", tree], start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        assert leader.stdout
        with leader.stdout:
            assert leader.stdout.readline() == "up\n"
        born = processes()[leader.pid].born
        assert started_by(leader.pid, born + 1) == []  # a later process of the same number
        started = started_by(leader.pid, born)
        assert len(started) == 2
        assert end(leader.pid, born) == 2
        assert alive(started) == []
        assert bystander.poll() is None
    finally:
        for process in (bystander, leader):
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_a_head_that_takes_no_jobs_in_time_is_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setattr(up, "READY_SECONDS", 0.5)
    monkeypatch.setattr(
        up,
        "head_command",
        lambda definition, folder: [sys.executable, "-c", "import time; print('slow', flush=True); time.sleep(60)"],
    )
    with pytest.raises(UserError, match=r"raypft-local took no jobs within 0.5 s; its log: 'slow"):
        up.up(load(FOLDER / "local.yaml"))
    assert not up.state_file("raypft-local").exists()


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    definition, port = load(FOLDER / "local.yaml"), free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 2))
        taken.listen()
        with pytest.raises(
            UserError, match=f"dashboard_port of raypft-local: port {port + 2} is in use here; choose another"
        ):
            up.up(definition.model_copy(update={"dashboard_port": port}))
    assert not up.state_file("raypft-local").exists()
