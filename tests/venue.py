"""A local exchange over real sockets; a test writes down what happens on each connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ingest.clock import Clock

Script = Callable[[ServerConnection, int], Awaitable[None]]
"""What happens on a connection; the number counts handshakes from 1. 1000 follows its return."""


class Venue:
    """The server: `url`, and what it has seen.

    Attributes
    ----------
    handshakes
        Clock's time of each, whether accepted or refused.
    refuse
        Status and headers to refuse all handshakes with, while set.
    """

    def __init__(self, script: Script, clock: Clock) -> None:
        self.url = ""
        self.handshakes: list[int] = []
        self.paths: list[str] = []
        self.sent: list[str] = []
        self.open: set[ServerConnection] = set()
        self.refuse: tuple[int, Mapping[str, str]] | None = None
        self._script = script
        self._clock = clock

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Venue]:
        async with serve(
            self._serve,
            "127.0.0.1",
            0,
            process_request=self._judge,
            close_timeout=0.2,
            ping_interval=None,
        ) as server:
            host, port = next(iter(server.sockets)).getsockname()
            self.url = f"ws://{host}:{port}"
            yield self

    def _judge(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(self._clock.now_ms())
        self.paths.append(request.path)
        if self.refuse is None:
            return None
        status, headers = self.refuse
        sent = Headers({**headers, "Content-Length": "0", "Connection": "close"})
        return Response(status, HTTPStatus(status).phrase, sent, b"")

    async def _serve(self, connection: ServerConnection) -> None:
        self.open.add(connection)
        try:
            await self._script(connection, len(self.handshakes))
        except ConnectionClosed:
            pass
        finally:
            self.open.discard(connection)

    async def listen(self, connection: ServerConnection) -> None:
        """Take in what the client sends, until it closes."""
        async for message in connection:
            self.sent.append(str(message))


async def repeat(connection: ServerConnection, *messages: bytes, every_s: float = 0.005) -> None:
    """Send the messages over and over, as text, until the connection ends."""
    while True:
        for message in messages:
            await connection.send(message, text=True)
        await asyncio.sleep(every_s)


async def stay_silent(connection: ServerConnection) -> None:
    """Keep the connection open and say nothing."""
    await connection.wait_closed()


async def stop_reading(connection: ServerConnection) -> None:
    """Keep the connection open and take nothing in, as a peer does whose network is gone."""
    connection.transport.pause_reading()
    await connection.wait_closed()


def reset(connection: ServerConnection) -> None:
    """End the connection with a TCP reset."""
    peer = connection.transport.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.transport.abort()
