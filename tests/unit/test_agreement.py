"""Two collectors of one store: what one finds there, and what it makes of it."""

from typing import Any

import pytest

from ingest.candles import CandleBook
from ingest.clock import Clock
from ingest.exchanges.rest_base import ClosedPage
from ingest.freshness import Freshness
from ingest.repair import Repairer, _Followed
from marketdata.schema import CANDLE_MS, MINUTE_MS
from tests.feeds import market
from tests.stores import NoOutbox
from tests.unit.test_candles import START_MS, minute

KEY = ("BYBIT", "BTC/USDT:USDT")


class Store:
    """What both have written, read measurement by measurement."""

    def __init__(self, changes):
        self.written: dict[str, dict[int, Any]] = {"ohlcv_1m": {}, "ohlcv_3m": {}, "gap": {}}
        self.after_read = None
        self.write(changes)

    def write(self, changes):
        self.written["ohlcv_1m"] |= {row.time: row for row in changes.minutes}
        self.written["ohlcv_3m"] |= {row.time: row for row in changes.candles}

    def rows(self, measurement, exchange, symbol, start_ms, end_ms, limit=None):
        rows = [row for time, row in sorted(self.written[measurement].items()) if time < end_ms]
        if self.after_read is not None:
            self.write(self.after_read)
            self.after_read = None
        return rows


class Rest:
    """An exchange that states the same minutes whoever asks; `on_call` happens meanwhile."""

    def __init__(self, klines, on_call):
        self.klines, self.on_call, self.calls = klines, on_call, 0

    async def minutes(self, market, start_ms, end_ms):
        self.calls += 1
        self.on_call()
        yield ClosedPage(self.klines, start_ms, end_ms, end_ms)


class Pipeline:
    """One book, whose changes go to the store at once."""

    def __init__(self, book, store):
        self.books, self.store = {KEY: book}, store

    async def repair(self, key, statements, minutes, candles):
        self.store.write(self.books[key].merge(statements, minutes, candles))


def collectors():
    """Books of two that have heard the same candle, the store, and the minutes of a correction."""
    klines = [minute(n) for n in range(3)]
    one, other = CandleBook(), CandleBook()
    store = Store(one.apply(klines))
    other.apply(klines)
    corrected = klines[1]._replace(high=500.0, event_ms=START_MS + CANDLE_MS + 5_000)
    return one, other, store, [klines[0], corrected, klines[2]]


async def agree(book, store, rest):
    clock = Clock(start_ms=START_MS + CANDLE_MS + MINUTE_MS)
    pipeline: Any = Pipeline(book, store)
    outbox: Any = NoOutbox()
    repairer = Repairer(
        KEY[0], rest, store, pipeline, outbox, Freshness(lambda *_: None), clock,
        lookback_ms=0,
    )  # fmt: skip
    await repairer._agree_on(_Followed(market(KEY[1], exchange=KEY[0]), since_ms=START_MS))


@pytest.mark.parametrize("when", ["while it is asked", "between two reads"])
async def test_what_the_other_writes_while_the_exchange_is_asked_keeps_its_source(when):
    one, other, store, corrected = collectors()
    changes = one.apply(corrected)
    # Its candle is there already, its minute isn't: something is amiss, and the exchange is asked.
    store.write(changes._replace(minutes=[]))

    def on_call():
        if when == "while it is asked":
            store.write(changes)
        else:
            store.after_read = changes

    rest = Rest([kline._replace(source="rest") for kline in corrected], on_call)
    await agree(other, store, rest)
    assert rest.calls == 1
    row = store.written["ohlcv_1m"][START_MS + MINUTE_MS]
    assert (row.high, row.revision, row.source) == (500.0, 1, "stream")
    assert other.revisions[START_MS + MINUTE_MS] == 1
