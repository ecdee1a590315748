"""A TCP forwarder on one address: to another server, slowly, or without bringing answers back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Forwarder:
    """What comes to `port` goes to the server at `target_port`.

    Attributes
    ----------
    delay_s
        How long each piece of an answer is held back.
    brings_answers
        False: the server is heard, but nobody hears it.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.target_port = target_port
        self.delay_s = 0.0
        self.brings_answers = True
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Forwarder]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await server.wait_closed()

    def cut(self) -> None:
        """End every connection; new ones are taken."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(reader, far_writer, both))
                tasks.create_task(self._carry(far_reader, writer, both, are_answers=True))
        finally:
            self._writers -= both

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: set[asyncio.StreamWriter],
        *,
        are_answers: bool = False,
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if are_answers:
                    await asyncio.sleep(self.delay_s)
                    if not self.brings_answers:
                        continue
                writer.write(data)
                await writer.drain()
        for each in both:
            each.close()
