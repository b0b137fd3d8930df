"""An S3-compatible store on this machine: moto's server, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from botocore.exceptions import EndpointConnectionError
from s3fs import S3FileSystem

NAME = "raypft-tests"


@contextmanager
def served(monkeypatch) -> Iterator[str]:
    """The URI of an empty bucket; the environment says where it is and with which key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as server:
        try:
            client, deadline = boto3.client("s3"), time.monotonic() + 60
            while True:
                try:
                    client.create_bucket(Bucket=NAME)
                    break
                except EndpointConnectionError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise RuntimeError("moto's server did not start") from None
                    time.sleep(0.2)
            yield f"s3://{NAME}"
        finally:
            server.kill()
            S3FileSystem.clear_instance_cache()  # each knows the address that it was made for
