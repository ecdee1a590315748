"""`ingest record`: what the exchanges send, byte for byte, in cryptofeed's capture format.

The feeds run as in the service, on connections that hand every message to cryptofeed's file
callback before anyone parses it; what is parsed goes nowhere.
"""

from __future__ import annotations

import asyncio
import atexit
from contextlib import suppress
from pathlib import Path

import orjson
from cryptofeed.connection import Connection
from cryptofeed.feedhandler import FeedHandler
from cryptofeed.raw_data_collection import AsyncFileCallback

from ingest.budget import Budgets
from ingest.capture import INTERVALS, SELECTED
from ingest.clock import Clock
from ingest.discovery import Discovery
from ingest.exchanges import EXCHANGES
from ingest.model import Event
from ingest.selection import select
from marketdata.settings import ExchangeSettings, Settings

LINES_BUFFERED = 200


class _Files(AsyncFileCallback):  # type: ignore[misc]
    """cryptofeed's file callback, and what is told of connections; see `ingest.capture`."""

    def told(self, what: str, time_s: float, uuid: str, address: str) -> None:
        self.data[uuid].append(f"{address} <-> {time_s} {what}")


async def record_capture(
    settings: Settings, clock: Clock, folder: Path, stop: asyncio.Event, seconds: float | None
) -> None:
    """Capture until `stop` is set or the time is over.

    Raises
    ------
    ExchangeUnavailable
        An exchange's metadata can't be had.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    files = _Files(str(folder), length=LINES_BUFFERED)
    Connection.raw_data_callback = files
    handler = FeedHandler(config={"log": {"disabled": True}, "uvloop": False})
    handler.run(start_loop=False, install_signal_handlers=False)
    redis_url = None if settings.redis is None else settings.redis.url.get_secret_value()
    try:
        for exchange, wanted in settings.exchanges.items():
            await _start(exchange, wanted, clock, handler, files, redis_url)
        with suppress(TimeoutError):
            async with clock.timeout(seconds if seconds is not None else float("inf")):
                await stop.wait()
    finally:
        for feed in handler.feeds:
            await feed.shutdown()
        Connection.raw_data_callback = None
        files.stop()
        # It would be kept, and write an empty line more, at the end of the process.
        atexit.unregister(files.__del__)
        files.data.clear()


async def _start(
    exchange: str,
    wanted: ExchangeSettings,
    clock: Clock,
    handler: FeedHandler,
    files: AsyncFileCallback,
    redis_url: str | None,
) -> None:
    adapter = EXCHANGES[exchange]
    proxy = None if wanted.http_proxy is None else wanted.http_proxy.get_secret_value()
    rest = adapter.rest(Budgets(), clock, wanted.rest_url, proxy)
    try:
        metadata = await rest.catalogue()
        hours = await rest.intervals()
        catalogue = rest.markets(metadata)
        discovery = Discovery(exchange, wanted.pairs, rest, redis_url, clock)
        selection = select(exchange, await discovery.wanted(catalogue), catalogue)
    finally:
        await rest.close()
    # A replay needs the names that the frames mean, and what of them is meant.
    wanted_now = {"pairs": list(selection.markets), "channels": list(wanted.channels)}
    for told, where in ((metadata, "/markets"), (hours, INTERVALS), (wanted_now, SELECTED)):
        files.sync_callback(
            orjson.dumps(told).decode(), clock.now_ms() / 1000, exchange,
            endpoint=f"{rest.client.address}{where}",
        )  # fmt: skip
    feed = adapter.feed(
        list(selection.markets.values()),
        wanted.channels,
        dict.fromkeys(wanted.channels, _ignore),
        clock,
        ws_url=wanted.ws_url,
        http_proxy=proxy,
    )
    handler.add_feed(feed)


async def _ignore(event: Event, receipt_timestamp: float) -> None:
    """Parsed on the way, for the lane's sake; only the bytes are kept."""
