"""What submit, check and up decide without a cluster: packages, addresses, tokens, feasibility, exit codes, processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from raypft.cli import app, main
from raypft.cli.progress import JobProgress
from raypft.cluster import nodes, submit, up
from raypft.cluster.check import preflight
from raypft.cluster.client import Address, JobServer, Lost, Unreachable, find_address, find_token
from raypft.cluster.definition import load
from raypft.cluster.feasible import asked_for, refuse_impossible
from raypft.cluster.package import pack
from raypft.cluster.processes import alive, end, processes, started_by
from raypft.errors import UserError
from raypft.scale.resources import Infeasible, shapes_of

FOLDER = Path(__file__).parents[2] / "cluster"
FAKE = shapes_of(load(FOLDER / "fake.yaml").pools)


def run(*words: str) -> int:
    """Exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main(lambda: app(list(words)))
    return int(left.value.code or 0)


def test_a_package_takes_what_git_knows_or_would_know_and_is_named_by_its_content(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in (
        "kept.py",
        "sub/also.txt",
        "ignored.txt",
        "weights.safetensors",
        "runs/result.json",
        ".venv/bin/python",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("ignored.txt\n")
    first = pack(tmp_path)
    assert zipfile.ZipFile(BytesIO(first.content)).namelist() == [".gitignore", "kept.py", "sub/also.txt"]
    assert (first.commit, first.dirty) == ("none", True)
    os.utime(tmp_path / "kept.py", (0, 0))
    assert pack(tmp_path).name == first.name
    (tmp_path / "kept.py").write_text("changed")
    assert pack(tmp_path).name != first.name


def test_a_package_above_the_limit_is_refused_before_it_is_zipped(tmp_path):
    with (tmp_path / "big.dat").open("wb") as file:
        file.truncate(91 * 2**20)
    (tmp_path / "small.txt").write_text("x")
    start = time.monotonic()
    with pytest.raises(
        UserError,
        match=r"holds 91 MiB, the job server takes 90; largest, in MiB: big.dat 91.0, small.txt 0.0; name them in .gitignore",
    ):
        pack(tmp_path)
    assert time.monotonic() - start < 1
    with pytest.raises(UserError, match=r"package: no folder .*nowhere; give --working-dir"):
        pack(tmp_path / "nowhere")


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
    assert run("submit", "--address", "http://127.0.0.1:1", "--", "list", "recipes") == 69
    said = capsys.readouterr().err
    assert said.startswith("raypft: no job server at http://127.0.0.1:1 (--address): ")
    assert said.count("\n") == 1
    assert Unreachable.code == 69


@pytest.mark.parametrize("option", ["--env", "--metadata"])
def test_a_pair_without_a_key_is_refused(option, capsys):
    assert run("submit", option, "COLOUR", "--", "list", "recipes") == 2
    assert f'{option} "COLOUR": expected KEY=VALUE' in capsys.readouterr().err


def test_another_ray_on_the_cluster_is_refused():
    server = SimpleNamespace(ray_version="2.59.0", address=Address("http://x", "--address"))
    with pytest.raises(
        UserError, match=r"http://x runs Ray 2.59.0, here is 2.60.0; install raypft with the cluster's version"
    ):
        JobServer.check_version(server)  # type: ignore[arg-type]


def ended(status: str, error: str | None = None, code: int | None = None, message: str = "") -> dict:
    return {"submission_id": "j", "status": status, "error_type": error, "driver_exit_code": code, "message": message}


@pytest.mark.parametrize(
    ("job", "asked", "code"),
    [
        (ended("SUCCEEDED"), False, 0),
        (ended("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 7), False, 7),
        (ended("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", -9), False, 137),
        (ended("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR"), False, 1),
        (ended("STOPPED"), True, 130),
        (ended("STOPPED"), False, 143),
        (ended("FAILED", "JOB_SUPERVISOR_ACTOR_DIED", None, "The actor never ran - it was cancelled"), True, 130),
        (ended("FAILED", "JOB_SUPERVISOR_ACTOR_DIED"), False, 74),
        (ended("FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"), False, 75),
        (ended("FAILED", "RUNTIME_ENV_SETUP_FAILURE"), False, 78),
    ],
)
def test_the_table_of_exit_codes(job, asked, code, capsys):
    assert submit.told(job, JobProgress(as_json=False), asked) == code
    assert f"exit code {code}" in capsys.readouterr().err
    assert f"| {code} |" in (FOLDER / "README.md").read_text() or code == 7


def test_a_jobs_resources_are_read_before_it_is_asked_for():
    (asked,) = asked_for(["run", "profit", "resources.workers=2"], FAKE)
    assert asked == ("profit", [{"CPU": 1.0, "GPU": 0}] * 2 + [{"CPU": 1.0}, {"CPU": 0.5}])
    known = 'unknown key "gpus"; known: cpus_per_worker, data_label, gpus_per_worker'
    with pytest.raises(UserError, match=f"recipes/profit.yaml: resources: {known}"):
        list(asked_for(["profit", "resources.gpus=1"], FAKE))


def test_the_trials_of_a_campaign_are_asked_for_too(tmp_path):
    small = {
        "about": "test",
        "defaults": {"backbone": "x", "resources.gpus_per_worker": 1},
        "rows": {"A": {"recipe": "profit"}},
        "tasks": ["sentiment", "nli"],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(small))
    assert list(asked_for(["tune", str(path)], FAKE)) == [("A sentiment", [{"CPU": 1, "GPU": 1}])], "equal ones once"
    (asked,) = asked_for(["tune", str(path), "resources.workers=2"], FAKE)
    assert asked[1] == [{"CPU": 0.1}, *[{"CPU": 1, "GPU": 1}] * 2, {"CPU": 1}, {"CPU": 0.5}]
    refuse_impossible(["tune", str(path)], FOLDER / "fake.yaml")
    with pytest.raises(Infeasible, match=r"the job needs \{CPU: 1, GPU: 4\} on one node; the largest is gpu1"):
        refuse_impossible(["tune", str(path), "resources.gpus_per_worker=4"], FOLDER / "fake.yaml")


def test_an_impossible_job_is_refused_at_once_with_code_75(capsys):
    words = [
        "profit",
        "task=sentiment",
        "backbone=bert-base-cased",
        "resources.workers=1",
        "resources.gpus_per_worker=4",
    ]
    start = time.monotonic()
    assert run("submit", "--cluster", str(FOLDER / "fake.yaml"), "--", "run", *words) == 75
    assert time.monotonic() - start < 5
    assert (
        "the job needs {CPU: 1, GPU: 4} on one node; the largest is gpu1 {CPU: 1, GPU: 1} x 2"
        in capsys.readouterr().err
    )
    start = time.monotonic()
    assert run("cluster", "check", str(FOLDER / "fake.yaml"), "--offline", *words) == 75
    assert time.monotonic() - start < 5
    capsys.readouterr()
    words[-1] = "resources.gpus_per_worker=1"
    main(lambda: app(["cluster", "check", str(FOLDER / "fake.yaml"), "--offline", *words], standalone_mode=False))
    assert capsys.readouterr().out == "profit: fits, 1 at a time: 3 of {CPU: 0.5}, {CPU: 1, GPU: 1}, {CPU: 1}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["validate", str(FOLDER / "aws.yaml")],
        ["check", str(FOLDER / "aws.yaml"), "--offline"],
        ["check", str(FOLDER / "aws.yaml"), "--offline", "profit", "task=xnli", "resources.workers=8"],
        ["check", str(FOLDER / "aws.yaml"), "--offline", "tune", "quickstart", "resources.workers=2"],
    ],
    ids=["validate", "check", "check a job", "check a campaign"],
)
def test_what_is_known_of_files_alone_loads_no_torch(words):
    code = "import sys; from raypft.cli import app; print(app(['cluster', *sys.argv[1:]], standalone_mode=False));"
    code += "print('loaded', sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize("verb", ["up", "down"])
def test_clusters_of_others_are_not_started_from_here(verb, capsys):
    assert run("cluster", verb, str(FOLDER / "aws.yaml")) == 2
    assert (
        f"cluster {verb}: found kind aws; only local and fake clusters live on this machine; use: ray {verb} cluster/rendered/"
        in capsys.readouterr().err
    )
    assert run("cluster", verb, str(FOLDER / "kubernetes.yaml")) == 2
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


def test_where_ray_is_must_be_told_for_other_peoples_clusters(capsys):
    assert run("cluster", "status", str(FOLDER / "aws.yaml")) == 2
    assert "where Ray of raypft-aws is can't be told from kind aws; give --ray HOST:PORT" in capsys.readouterr().err


def test_ending_ends_a_tree_with_its_own_sessions_and_nothing_else():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    tree = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True); time.sleep(60)"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    leader = subprocess.Popen([sys.executable, "-c", tree], start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        assert leader.stdout
        assert leader.stdout.readline() == "up\n"
        born = processes()[leader.pid].born
        assert started_by(leader.pid, born + 1) == []  # a later process of the same number
        found = started_by(leader.pid, born)
        assert len(found) == 2
        assert end(leader.pid, born) == 2
        assert alive(found) == []
        assert bystander.poll() is None
    finally:
        for process in (bystander, leader):
            process.send_signal(signal.SIGKILL)
            process.wait()


class Silent:
    """A job server that knows a running job and then goes away."""

    address = Address("http://x", "--address")

    def job(self, job_id: str) -> dict:
        return ended("RUNNING")

    def __init__(self) -> None:
        self.tails = [["half a "], ["half a ", "line\n"]]

    async def tail(self, job_id: str):
        for text in self.tails.pop(0) if self.tails else ():
            yield text
        raise ConnectionError("closed with code 1006")


def test_a_server_that_goes_away_is_waited_for_and_then_told_with_the_way_back(monkeypatch, capsys):
    monkeypatch.setattr(submit, "RECONNECT_SECONDS", 0.5)
    with pytest.raises(
        Lost,
        match=r"job j: no answer from http://x for 0.5 s .closed with code 1006.; when it is back: raypft submit attach j",
    ) as found:
        submit.follow(Silent(), "j", JobProgress(as_json=False))  # type: ignore[arg-type]
    assert found.value.code == 74
    assert capsys.readouterr().out == "half a line\n"  # once, though read from the beginning each time


def fake_server(answer: dict, headers: dict | None = None, status: str = "SUCCEEDED") -> SimpleNamespace:
    """A job server whose check job prints this."""
    job = {**ended(status), "message": "it broke"}
    return SimpleNamespace(
        address=Address("http://x", "--address"),
        headers={"Authorization": "t"} if headers is None else headers,
        token_source="t",
        ray_version="2.60.0",
        check_version=lambda: None,
        submit=lambda request: None,
        job=lambda name: job,
        log=lambda name: json.dumps(answer) if answer else "no answer",
    )


OURS = {"ray": "2.60.0", "python": sys.version.split()[0], "node": "a" * 56}


@pytest.mark.parametrize(
    ("server", "line", "code"),
    [
        (
            fake_server({}, headers={}),
            "found a job server that asks for no token; anyone who reaches it runs code there",
            2,
        ),
        (
            fake_server({"driver": OURS, "worker": {**OURS, "python": "3.9.1"}}),
            "the worker runs Python 3.9, here is",
            2,
        ),
        (
            fake_server({"error": "no worker node with a free CPU came within 5 s", "code": 75}),
            "raypft-fake: no worker node with a free CPU came",
            75,
        ),
        (fake_server({"error": "Permission denied"}), "a worker can't write there: Permission denied", 73),
        (fake_server({}, status="FAILED"), "the check ended FAILED: it broke", 2),
    ],
)
def test_what_check_refuses(server, line, code):
    with pytest.raises(UserError, match=line) as found:
        list(preflight.server_lines(server, load(FOLDER / "fake.yaml"), 5))
    assert found.value.code == code


def test_a_check_that_never_ends_is_stopped(monkeypatch):
    server, stopped = fake_server({}, status="RUNNING"), []
    monkeypatch.setattr(preflight, "PROBE_SECONDS", -6)

    async def stop(server, name):
        stopped.append(name)

    monkeypatch.setattr(preflight, "stop", stop)
    with pytest.raises(UserError, match="the check did not end within -1 s; raypft submit logs check-"):
        list(preflight.server_lines(server, load(FOLDER / "fake.yaml"), 5))
    assert len(stopped) == 1


def test_no_ray_at_an_address_is_one_line(monkeypatch):
    from ray.autoscaler.v2 import sdk

    def fail(address):
        raise RuntimeError("Failed to connect\nto GCS")

    monkeypatch.setattr(sdk, "get_cluster_status", fail)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(
        UserError, match=r"cluster: no Ray at 127.0.0.1:1: Failed to connect to GCS; is it up, and is the token right"
    ):
        nodes.cluster_status("127.0.0.1:1")


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
    definition = load(FOLDER / "local.yaml")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=f"dashboard_port of raypft-local: port {port} is in use here; choose another"
        ):
            up.up(definition.model_copy(update={"dashboard_port": port - 2}))
    assert not up.state_file("raypft-local").exists()
