"""`raypft submit` against a real head: exit codes, Ctrl-C, attaching, pending jobs, tokens; a line for each fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from here import Here

from raypft.cluster.processes import processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A local cluster for the module."""
    made = Here(tmp_path_factory.mktemp("submit"), "local")
    code, out, err = made("cluster", "up", str(made.file))
    assert code == 0, err
    yield made
    port = made.url.rpartition(":")[2]
    assert any(port in command for command in commands())
    code, out, err = made("cluster", "down", str(made.file))
    assert "ended" in out, err
    assert not any(port in command for command in commands())


def commands() -> list[str]:
    """The command lines of all processes."""
    lines = []
    for pid in processes():
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                lines.append(file.read())
        except OSError:
            continue
    return lines


def python(code: str) -> list[str]:
    return ["--raw", "--no-package", "--", "python", "-c", code]


def test_the_exit_code_is_the_jobs_own(here):
    jobs = {
        0: python("import os; print('env', os.environ['COLOUR'], os.environ['RAY_JOB_STOP_WAIT_TIME_S'])"),
        7: python("import sys; print('seven'); sys.exit(7)"),
        137: ["--raw", "--no-package", "--", "bash", "-c", "echo killed; kill -9 $$"],
    }
    with ThreadPoolExecutor() as pool:
        ended = dict(
            zip(jobs, pool.map(lambda words: here.submit("--env", "COLOUR=blue", *words), jobs.values()), strict=True)
        )
    assert {wanted: answer[0] for wanted, answer in ended.items()} == {0: 0, 7: 7, 137: 137}
    assert "env blue 60\n" in ended[0][1]
    assert "seven\n" in ended[7][1]
    assert "FAILED, exit code 7" in ended[7][2]


def test_the_folder_goes_along_and_a_raypft_verb_runs(here):
    tree = here.folder / "tree"
    tree.mkdir()
    for name, text in (
        (".gitignore", "secret.txt\n"),
        ("data.txt", "carried"),
        ("secret.txt", "left"),
        ("model.pt", "left"),
    ):
        (tree / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    look = "import os; print(sorted(os.listdir())); print(open('data.txt').read())"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(
            here.submit,
            "--working-dir",
            str(tree),
            "--id",
            "carried",
            "--metadata",
            "campaign=c1",
            "--raw",
            "--",
            "python",
            "-c",
            look,
        )
        second = pool.submit(here.submit, "--no-package", "--json", "--", "list", "recipes")
    code, out, err = first.result()
    assert (code, "['.gitignore', 'data.txt']\ncarried\n" in out) == (0, True), (out, err)
    told = json.loads(here.submit("status", "carried", "--json")[1])
    assert told["metadata"]["campaign"] == "c1"
    assert told["metadata"]["dirty"] == "True"
    code, out, _ = second.result()
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert "gnnavi_gcn" in "".join(event["text"] for event in events if event["event"] == "log")
    assert events[-1] == {**events[-1], "event": "ended", "status": "SUCCEEDED", "code": 0}


GENTLE = """
import signal, sys, time
def end(*_):
    print('saved'); sys.exit(0)
signal.signal(signal.SIGTERM, end)
print('ready')
while True: time.sleep(0.1)
"""


def started(here: Here, *words: str) -> subprocess.Popen:
    """A followed job that has printed "ready"."""
    process = here.start("submit", *here.at((None, *words)))
    assert process.stdout
    assert any("ready" in line for line in process.stdout)
    return process


def test_ctrl_c_stops_the_job_and_it_may_clean_up(here):
    process = started(here, "--id", "gentle", *python(GENTLE))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "saved" in out
    assert "STOPPED" in here.submit("status", "gentle")[1]


def test_a_second_ctrl_c_leaves_the_job_which_can_be_attached_and_stopped(here):
    stubborn = GENTLE.replace("print('saved'); sys.exit(0)", "print('no')")
    process = started(here, "--id", "stubborn", "--stop-wait", "15", *python(stubborn))
    process.send_signal(signal.SIGTERM)
    assert process.stderr
    assert any("stopping" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, f"raypft submit attach stubborn --address {here.url}" in err) == (130, True), err
    assert "RUNNING" in here.submit("status", "stubborn")[1]
    with here.start("submit", "attach", "stubborn", "--address", here.url) as attached:
        assert attached.stdout
        assert any("ready" in line for line in attached.stdout)  # from the beginning
        attached.send_signal(signal.SIGINT)
        assert (attached.wait(20), "RUNNING" in here.submit("status", "stubborn")[1]) == (130, True)


def test_the_same_id_follows_the_first_and_another_command_is_refused(here):
    words = ["--id", "once", *python("print('once')")]
    assert here.submit(*words)[0] == 0
    code, out, err = here.submit(*words)
    assert (code, "once\n" in out, "was submitted before, SUCCEEDED" in err) == (0, True, True)
    code, _, err = here.submit("--id", "once", *python("print('other')"))
    assert code == 2
    assert err.count("\n") == 1
    assert 'job "once" exists with another command or package (SUCCEEDED)' in err


def test_a_job_that_waits_for_a_gpu_that_never_comes_can_be_stopped(here):
    assert here.submit("--id", "waiting", "--gpus", "5", "--no-wait", *python("print(1)"))[0] == 0
    here.until("waiting", "waiting for resources", "has not started")
    follower = here.start("submit", "attach", "waiting", "--address", here.url, "--on-interrupt", "stop")
    time.sleep(3)
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=90)
    assert (follower.returncode, "CANCELLED" in err) == (130, True), err
    assert "FAILED" in here.submit("status", "waiting")[1]
    listed = here.submit("list")[1]
    assert "waiting FAILED" in listed


def test_a_wrong_or_missing_token_is_one_line(here):
    code, _, err = here.submit("list", RAY_AUTH_TOKEN="0" * 64)
    assert (code, err.count("\n")) == (77, 1)
    assert "a wrong token ($RAY_AUTH_TOKEN); set RAY_AUTH_TOKEN" in err
    code, _, err = here.submit("list", RAY_AUTH_TOKEN_PATH="nowhere")
    assert (code, err.count("\n")) == (77, 1)
    assert "answers 401: no token (no $RAY_AUTH_TOKEN and no file nowhere)" in err


def test_unknown_jobs_are_one_line(here):
    for verb in ("status", "logs", "attach", "stop"):
        code, _, err = here.submit(verb, "nope")
        assert (code, err) == (2, f'raypft: job "nope": not on {here.url}; see raypft submit list\n')


def test_check_tells_token_versions_and_storage(here):
    code, out, err = here("cluster", "check", str(here.file))
    assert code == 0, err
    assert "a worker wrote, the driver read (driver and worker are one node" in out
    assert os.listdir(here.folder / "runs") == []
    text = here.file.read_text()
    other = here.folder / "readonly.yaml"
    other.write_text(text.replace(str(here.folder / "runs"), "/proc/runs"))
    code, out, err = here("cluster", "check", str(other))
    assert (code, err.count("\n")) == (73, 1), err
    assert "storage /proc/runs: a worker can't write there" in err


def test_up_refuses_what_is_up(here):
    code, _, err = here("cluster", "up", str(here.file))
    assert (code, "is up; raypft cluster down ends it" in err) == (2, True)
