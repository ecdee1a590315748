"""Binds the API and serves until SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import socket
import sys

import uvicorn

from marketdata.settings import Settings
from readers.api.app import create_app
from readers.client import MarketData

_SHUTDOWN_S = 5
"""How long requests that are under way may take when the server is to stop."""


def run_server(settings: Settings) -> None:
    """Serve `settings.api`.

    Raises
    ------
    OSError
        The address can't be bound.
    """
    host, port = settings.api.host, settings.api.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, port), family=family) as listener,
        MarketData(settings=settings) as data,
    ):
        config = uvicorn.Config(
            create_app(settings, data),
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        # When uvicorn has shut down it raises the signal again, for whoever was there before.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        uvicorn.Server(config).run(sockets=[listener])
