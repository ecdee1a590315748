"""Markets, messages and a recording callback for tests of feeds."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import orjson

from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.model import Event
from marketdata.pairs import Market, MarketKind
from marketdata.schema import Channel

MINUTE_MS = 1_791_382_980_000
RECEIVED_S = MINUTE_MS / 1000 + 13.0
"""When messages of the minute come."""


def market(
    pair: str,
    *,
    exchange: str = "BINANCE_FUTURES",
    id: str | None = None,
    hours: float | None = 8.0,
) -> Market:
    """A market by its pair; the exchange's id is base and quote, unless given."""
    base, _, rest = pair.partition("/")
    quote, _, settled = rest.partition(":")
    settle, _, expiry = settled.partition("-")
    kind: MarketKind = "future" if expiry else "perpetual" if settle else "spot"
    return Market(
        exchange=exchange,
        kind=kind,
        id=id or base + quote,
        pair=pair,
        base=base,
        quote=quote,
        settle=settle or None,
        expiry_ms=1 if expiry else None,
        active=True,
        listed_ms=None,
        interval_hours=hours if kind == "perpetual" else None,
    )


class Recorder:
    """A callback that keeps what it is called with."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.received_s: list[float] = []

    async def __call__(self, event: Event, receipt_timestamp: float) -> None:
        self.events.append(event)
        self.received_s.append(receipt_timestamp)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def on(self, *channels: Channel) -> dict[Channel, Recorder]:
        """This recorder as the callback of some channels."""
        return dict.fromkeys(channels, self)


def done(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing, as handling a message does."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


def unopened(url: str = "ws://127.0.0.1/market/stream") -> FeedConnection:
    """A connection to hand messages in with."""
    return FeedConnection(url, "test", Clock())


def dumps(value: object) -> bytes:
    return orjson.dumps(value)


def binance_kline(id: str = "BTCUSDT", event_ms: int = MINUTE_MS + 12_723, **k: object) -> bytes:
    """A kline message of Binance, as its combined streams send it."""
    kline = {
        "t": MINUTE_MS, "T": MINUTE_MS + 59_999, "s": id, "i": "1m", "f": 8153633367,
        "L": 8153634395, "o": "83084.90", "c": "83091.60", "h": "83091.70", "l": "83051.20",
        "v": "13.551", "n": 1027, "x": False, "q": "1125714.73960", "V": "6.426",
        "Q": "533856.66860", "B": "0",
    } | k  # fmt: skip
    data = {"e": "kline", "E": event_ms, "s": id, "k": kline}
    return dumps({"stream": f"{id.lower()}@kline_1m", "data": data})


def binance_mark_row(id: str = "BTCUSDT", **fields: object) -> dict[str, object]:
    """A mark price update of Binance, without an envelope."""
    return {
        "e": "markPriceUpdate", "E": 1791382993000, "s": id, "p": "83084.30000000",
        "ap": "83084.30000000", "P": "83195.15881449", "i": "83123.65891304", "r": "0.00000078",
        "T": 1791388800000, "st": 1,
    } | fields  # fmt: skip


def binance_mark(id: str = "BTCUSDT", **fields: object) -> bytes:
    """A mark price message of Binance."""
    row = binance_mark_row(id, **fields)
    return dumps({"stream": f"{id.lower()}@markPrice@1s", "data": row})


def bybit_row(**fields: object) -> dict[str, object]:
    """One element of a Bybit kline message's data."""
    return {
        "start": MINUTE_MS, "end": MINUTE_MS + 59_999, "interval": "1", "open": "63967.7",
        "close": "64043.6", "high": "64050.9", "low": "63960.5", "volume": "188.079",
        "turnover": "12037252.1038", "confirm": False, "timestamp": MINUTE_MS + 39_440,
    } | fields  # fmt: skip


def bybit_kline(*rows: object, id: str = "BTCUSDT", ts: int = MINUTE_MS + 39_440) -> bytes:
    """A kline message of Bybit."""
    message = {"topic": f"kline.1.{id}", "data": rows or (bybit_row(),), "ts": ts}
    return dumps(message | {"type": "snapshot"})


def bybit_ticker(kind: str, ts: int = 1760325052630, id: str = "BTCUSDT", **data: str) -> bytes:
    """A ticker message of Bybit: `snapshot` or `delta`."""
    fields = {"symbol": id} | data
    return dumps(
        {"topic": f"tickers.{id}", "type": kind, "data": fields, "cs": 9532239429, "ts": ts}
    )
