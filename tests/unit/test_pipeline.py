from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from ingest.candles import candle_open_ms
from ingest.clock import Clock
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.model import Kline
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.ticks import Thinner
from marketdata.errors import StoreUnavailable
from marketdata.schema import CANDLE_MS, MINUTE_MS, Gap, LastPrice, MarkPrice, Ohlcv

KEY = ("BYBIT", "BTC/USDT:USDT")


class Line:
    """A pipeline on a real outbox, with a clock that stands still."""

    def __init__(self, outbox, now_ms):
        self.clock = FixedClock(now_ms)
        self.inbox, self.hot, self.outbox = Inbox(), HotState(), outbox
        self.candles: list[Ohlcv] = []
        self.pipeline = Pipeline(
            self.inbox, outbox, self.hot, Thinner(1_000), self.clock, [self.candles.extend]
        )

    async def rows(self, measurement):
        return await self.outbox.pending(measurement, *KEY, 0, 2**53)


class FixedClock(Clock):
    def __init__(self, now_ms):
        super().__init__()
        self.time_ms = now_ms

    def now_ms(self):
        return self.time_ms


NOW_MS = candle_open_ms(1_790_000_000_000) + CANDLE_MS


def kline(n, close=100.0, *, closed=True, source="stream", event_ms=None, volume="1"):
    open_ms = NOW_MS - CANDLE_MS + n * MINUTE_MS
    return Kline(
        *KEY, open_ms, 100.0, max(100.0, close), min(100.0, close), close, Decimal(volume),
        Decimal(100), 1, closed, event_ms or open_ms + MINUTE_MS, source,
    )  # fmt: skip


@pytest.fixture
async def line(tmp_path):
    outbox = await Outbox.open(tmp_path / "outbox.db", 2**30)
    yield Line(outbox, NOW_MS)
    await outbox.close()


async def test_three_closed_minutes_become_a_candle_that_is_on_disk_before_it_is_published(line):
    for n in range(3):
        line.inbox.put(kline(n), NOW_MS)
    await line.pipeline.step()
    (candle,) = await line.rows("ohlcv_3m")
    assert (candle.time, candle.volume, candle.source) == (NOW_MS - CANDLE_MS, 3.0, "stream")
    assert len(await line.rows("ohlcv_1m")) == 3
    assert line.candles == [candle]


async def test_a_forming_minute_is_hot_but_never_stored(line):
    line.inbox.put(kline(0, 101.0, closed=False), NOW_MS)
    await line.pipeline.step()
    assert await line.rows("ohlcv_1m") == []
    assert line.hot.get(KEY).close == 101.0


async def test_a_repair_keeps_the_stored_source_and_counts_revisions_on(line):
    for n in range(3):
        line.inbox.put(kline(n), NOW_MS)
    await line.pipeline.step()
    minutes, candles = await line.rows("ohlcv_1m"), await line.rows("ohlcv_3m")
    fresh = Line(line.outbox, NOW_MS)
    changed = [kline(0), kline(1, 105.0, source="rest", event_ms=NOW_MS), kline(2)]
    await fresh.pipeline.repair(KEY, changed, minutes, candles)
    assert [(row.revision, row.source, row.high) for row in fresh.candles] == [(1, "rest", 105.0)]
    assert [row.revision for row in await line.rows("ohlcv_1m")] == [0, 1, 0]


async def test_a_streams_minute_from_before_the_horizon_is_left_to_repair(line):
    old = kline(0)._replace(minute_ms=NOW_MS - 7_200_000)
    line.inbox.put(old, NOW_MS)
    await line.pipeline.step()
    assert await line.rows("ohlcv_1m") == []
    assert line.pipeline.counts["too_old"] == 1


async def test_the_ticks_that_wait_for_their_window_are_stored_when_the_service_ends(line):
    line.inbox.put(MarkPrice(*KEY, NOW_MS + 100, 5.0, None), NOW_MS)
    await line.pipeline.step()
    assert await line.rows("mark_price") == []
    await line.pipeline.finish()
    assert [row.mark_price for row in await line.rows("mark_price")] == [5.0]


@pytest.fixture
def room(line, monkeypatch):
    """The disk is full until this is called."""

    async def refuse(batch):
        raise StoreUnavailable("no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(line.outbox, "append", refuse)
        yield disk.undo


async def test_on_a_full_disk_values_stay_fresh_and_rows_wait_in_memory(line, room):
    with capture_logs() as logs:
        for n in range(3):
            line.inbox.put(kline(n), NOW_MS)
            await line.pipeline.step()
        assert line.pipeline.error == "no space left on device"
        assert line.pipeline.down_since_ms == NOW_MS
        assert await line.rows("ohlcv_1m") == line.candles == []
        newest = line.hot.get(KEY)
        assert newest is not None
        assert newest.close == 100.0
        room()
        await line.pipeline.finish()
    assert len(await line.rows("ohlcv_1m")) == 3
    assert await line.rows("ohlcv_3m") == line.candles != []
    assert line.pipeline.error is line.pipeline.down_since_ms is None
    assert [entry["event"] for entry in logs] == ["outbox_unavailable", "outbox_live"]


async def test_what_a_full_disk_never_takes_is_counted_or_told(line, room, monkeypatch):
    monkeypatch.setattr("ingest.held.MOST_TICKS", 2)
    monkeypatch.setattr("ingest.held.MOST_ROWS", 1)
    gap = Gap(*KEY, "candles", NOW_MS, NOW_MS + 1, "silent", "open", None)
    with capture_logs() as logs:
        await line.pipeline.put_rows({"last_price": [LastPrice(*KEY, n, 1.0) for n in range(5)]})
        await line.pipeline.put_rows({"gap": [gap]})
        line.inbox.put(kline(0), NOW_MS)
        await line.pipeline.step()
        assert len(line.inbox) == 1, "nothing more is folded"
        await line.pipeline.finish()
    assert line.pipeline.dropped == {"outbox_unavailable.last_price": 3}
    assert logs[-1]["event"] == "rows_not_kept"
    assert logs[-1]["rows"] == 2 + 1 + 1
