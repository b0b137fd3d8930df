"""`raypft watch`: the page of a campaign in a browser while it runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from raypft.cli.shown import console
from raypft.storage import path_of


def watch(
    folder: Annotated[Path, typer.Argument(metavar="CAMPAIGN", parser=path_of, help="The folder of a campaign.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On which the page is served, to this machine alone; 0: a free one.")
    ] = 0,
) -> None:
    """A campaign's page, live while it runs: cells, best so far, curves, time left, failures. Nothing is written."""
    from raypft.campaigns.server import serving  # noqa: PLC0415  (loaded only where it is used)

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with serving(folder, port) as server:
            address = f"http://{server.server_address[0]}:{server.server_port}"
            console.print(f"watching {folder} on {address}; Ctrl-C ends", highlight=False, soft_wrap=True)
            console.file.flush()  # who reads it from a pipe waits for it
            server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
