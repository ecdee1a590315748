from decimal import Decimal

import pytest

from ingest.candles import candle_open_ms
from ingest.clock import Clock
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.model import Kline
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.ticks import Thinner
from marketdata.schema import CANDLE_MS, MINUTE_MS, MarkPrice, Ohlcv

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


async def test_a_full_disk_holds_the_pipeline_up_and_loses_nothing(line, monkeypatch):
    from marketdata.errors import StoreUnavailable

    append, failures = line.outbox.append, iter([StoreUnavailable("no space left on device")] * 2)

    async def flaky(batch):
        for failure in failures:
            raise failure
        await append(batch)

    monkeypatch.setattr(line.outbox, "append", flaky)
    line.clock.speed = 1_000.0
    for n in range(3):
        line.inbox.put(kline(n), NOW_MS)
    await line.pipeline.step()
    assert len(await line.rows("ohlcv_3m")) == 1
    assert line.pipeline.counts["append_retries"] == 2
