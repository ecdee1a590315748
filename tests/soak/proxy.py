"""A proxy in front of a real InfluxDB that passes writes on, or does what a bad one does."""

from __future__ import annotations

import asyncio
from typing import Literal

import aiohttp
from aiohttp import web

from tests.servers.process import free_port

Mode = Literal["pass", "busy", "hang"]

RETRY_AFTER_S = 2


class Proxy:
    """Use as an async context manager; `url` is its address.

    `mode` says what becomes of a write: it is passed on, answered with 503, or never answered.
    `close` makes it as if nobody listened there, `open` ends that.
    """

    def __init__(self, upstream: str) -> None:
        self.mode: Mode = "pass"
        self._upstream = upstream
        self._port = free_port()
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None
        self._over = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Proxy:
        self._client = aiohttp.ClientSession()
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
        assert self._client is not None
        await self._client.close()

    async def open(self) -> None:
        self._over.clear()
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/api/v2/write", self._write)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def close(self) -> None:
        self._over.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _write(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.mode == "busy":
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return web.json_response({"message": "busy"}, status=503, headers=headers)
        if self.mode == "hang":
            await self._over.wait()
            return web.Response(status=500)
        assert self._client is not None
        headers = {"Authorization": request.headers["Authorization"]}
        url = self._upstream + request.path_qs
        try:
            async with self._client.post(url, data=body, headers=headers) as answer:
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    content_type=answer.content_type,
                )
        except aiohttp.ClientError as error:
            return web.json_response({"message": str(error)}, status=502)
