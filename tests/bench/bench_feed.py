"""Messages through feed and candles per core-second, against cryptofeed's bare handler.

The bare limit is stock cryptofeed's `BinanceFutures.message_handler` with callbacks that do
nothing, on closed candles and funding only. Ours takes the same frames, forming minutes, marks and
index prices too, through callbacks, inbox and pipeline (hot values, candles, thinned ticks), up to
an outbox that costs nothing.

Run: `python -m tests.bench.bench_feed`
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import cryptofeed.exchanges
import orjson
from cryptofeed.symbols import Symbols

from ingest.backends import InboxBackend
from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.exchanges.binance_futures import ID, BinanceFutures
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.ticks import Thinner
from marketdata.pairs import Market
from marketdata.schema import Batch

PAIRS = 164
SECONDS = 60
"""Of market time: four klines and one mark price a second and pair."""
GOAL = 0.5
ROUNDS = 5
STEP_EVERY = 50
"""Messages in one step of the pipeline: as many as come in 50 ms."""

MARKETS = [
    Market(
        ID, "perpetual", f"C{n}USDT", f"C{n}/USDT:USDT", f"C{n}", "USDT", "USDT",
        None, True, None, 8.0,
    )
    for n in range(PAIRS)
]  # fmt: skip


def frames() -> list[bytes]:
    """A minute of combined-stream frames, in the exchange's own form."""
    start_ms = 1_791_382_980_000
    made = []
    for quarter in range(4 * SECONDS):
        event_ms = start_ms + 250 * (quarter + 1)
        for market in MARKETS:
            stream = market.id.lower()
            kline = {
                "t": start_ms, "T": start_ms + 59_999, "s": market.id, "i": "1m",
                "f": 8153633367, "L": 8153634395, "o": "83084.90", "c": "83091.60",
                "h": "83091.70", "l": "83051.20", "v": "13.551", "n": 1027,
                "x": quarter == 4 * SECONDS - 1, "q": "1125714.73960", "V": "6.426",
                "Q": "533856.66860", "B": "0",
            }  # fmt: skip
            data = {"e": "kline", "E": event_ms, "s": market.id, "k": kline}
            made.append(orjson.dumps({"stream": f"{stream}@kline_1m", "data": data}))
            if quarter % 4 == 3:
                data = {
                    "e": "markPriceUpdate", "E": event_ms, "s": market.id, "p": "83084.30000000",
                    "ap": "83084.30000000", "P": "83195.15881449", "i": "83123.65891304",
                    "r": "0.00000078", "T": 1791388800000, "st": 1,
                }  # fmt: skip
                made.append(orjson.dumps({"stream": f"{stream}@markPrice@1s", "data": data}))
    return made


async def bare(messages: Sequence[bytes]) -> float:
    """Seconds that stock cryptofeed takes."""

    async def ignore(event: object, receipt_timestamp: float) -> None:
        pass

    Symbols.set(ID, {f"C{n}-USDT-PERP": f"C{n}USDT" for n in range(PAIRS)}, {})
    feed = cryptofeed.exchanges.BinanceFutures(
        symbols=[f"C{n}-USDT-PERP" for n in range(PAIRS)],
        channels=["candles", "funding"],
        callbacks={"candles": ignore, "funding": ignore},
        config={},
    )
    texts = [message.decode() for message in messages]
    started = time.process_time()
    for text in texts:
        await feed.message_handler(text, None, 1_791_382_980.0)
    return time.process_time() - started


class FreeOutbox:
    """Counts what it is given."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()

    async def append(self, batch: Batch) -> None:
        self.rows.update({measurement: len(rows) for measurement, rows in batch.items()})


class MarketClock(Clock):
    """Stands at the end of the minute that the frames are of."""

    def now_ms(self) -> int:
        return 1_791_383_040_000


async def ours(messages: Sequence[bytes]) -> float:
    """Seconds from the frame to the rows that would be committed."""
    inbox, outbox, clock = Inbox(), FreeOutbox(), MarketClock()
    pipeline = Pipeline(inbox, cast(Outbox, outbox), HotState(), Thinner(1_000), clock)
    backend = InboxBackend(inbox)
    feed = BinanceFutures(
        MARKETS,
        ["candles", "funding", "mark_price"],
        {"candles": backend, "funding": backend, "mark_price": backend},
        clock,
    )
    connection = FeedConnection("ws://127.0.0.1", "bench", clock)
    started = time.process_time()
    for n, message in enumerate(messages):
        await feed.message_handler(message, connection, 1_791_382_980.0)
        if n % STEP_EVERY == 0:
            await pipeline.step()
    await pipeline.finish()
    spent = time.process_time() - started
    assert outbox.rows["ohlcv_1m"] == PAIRS, "each pair's minute closes"
    assert outbox.rows["mark_price"] >= PAIRS
    assert not feed.dropped
    return spent


async def best(
    run: Callable[[Sequence[bytes]], Awaitable[float]], messages: Sequence[bytes]
) -> float:
    return min([await run(messages) for _ in range(ROUNDS)])


def main() -> None:
    """Print both rates and their ratio."""
    messages = frames()
    bare_rate = len(messages) / asyncio.run(best(bare, messages))
    our_rate = len(messages) / asyncio.run(best(ours, messages))
    print(f"cryptofeed's bare handler  {bare_rate:>10,.0f} messages/core-s")
    print(f"feed to candles and ticks  {our_rate:>10,.0f} messages/core-s")
    print(f"ratio                      {our_rate / bare_rate:>10.2f}  (goal: at least {GOAL})")


if __name__ == "__main__":
    main()
