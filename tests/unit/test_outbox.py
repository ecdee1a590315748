"""The outbox's contract: durable once appended, out in order, bounded, every drop counted."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from math import nan
from pathlib import Path

import orjson
import pytest

from ingest.clock import Clock
from ingest.outbox import Depth, Outbox, Parcel
from ingest.outbox_records import SHARD_MS
from ingest.sinks.base import Rejected, Settled
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import Batch, FundingRate, LastPrice, MarkPrice, Row
from tests.stores import EXCHANGE, SYMBOL, TIME, mark, ohlcv, one_of_each
from tests.waiting import eventually

PLENTY = 2**30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "outbox.db"


@pytest.fixture
async def outbox(path: Path) -> AsyncIterator[Outbox]:
    outbox = await Outbox.open(path, PLENTY)
    yield outbox
    await outbox.close()


async def taken(outbox: Outbox, max_rows: int = 5_000) -> Parcel:
    parcel = await outbox.take(max_rows)
    assert parcel is not None
    return parcel


async def all_parcels(outbox: Outbox, max_rows: int = 5_000) -> list[Batch]:
    """Take and accept until nothing is left."""
    batches = []
    while parcel := await outbox.take(max_rows):
        batches.append(parcel.batch)
        await outbox.settle(parcel, Settled(parcel.rows))
    return batches


def marks(count: int, start: int = TIME) -> list[Row]:
    return [mark(time=start + n, mark_price=float(n)) for n in range(count)]


async def test_what_goes_in_comes_out_ticks_apart_from_the_rest(outbox: Outbox) -> None:
    batch = one_of_each()
    await outbox.append(batch)
    rest, ticks = sorted(await all_parcels(outbox), key=lambda batch: "mark_price" in batch)
    assert set(ticks) == {"mark_price", "funding_rate", "last_price"}
    assert {**ticks, **rest} == batch


async def test_absent_values_and_floats_come_out_to_the_last_bit(outbox: Outbox) -> None:
    rows = [ohlcv(trades=None, quote_volume=None), ohlcv(open=0.1 + 0.2, close=5e-324, high=1e308)]
    await outbox.append({"ohlcv_3m": rows})
    assert (await taken(outbox)).batch == {"ohlcv_3m": rows}


async def test_a_parcel_never_crosses_a_shard_of_time(outbox: Outbox) -> None:
    border = (TIME // SHARD_MS + 1) * SHARD_MS
    await outbox.append({"mark_price": marks(20, start=border - 10)})
    first, second = await all_parcels(outbox)
    assert [row.time for row in first["mark_price"]] == list(range(border, border + 10))
    assert [row.time for row in second["mark_price"]] == list(range(border - 10, border))


async def test_rows_of_one_shard_come_in_the_order_in_which_they_were_appended(
    outbox: Outbox,
) -> None:
    for n in range(4):
        await outbox.append({"ohlcv_3m": [ohlcv(revision=n)], "mark_price": marks(1)})
    first, second = await all_parcels(outbox)
    revisions = [row.revision for row in first["ohlcv_3m"]]  # type: ignore[union-attr]
    assert revisions == [0, 1, 2, 3]
    assert len(second["mark_price"]) == 4


async def test_a_parcel_has_at_most_the_rows_asked_for(outbox: Outbox) -> None:
    for start in range(0, 30, 10):
        await outbox.append({"mark_price": marks(10, start=TIME + start)})
    assert [len(batch["mark_price"]) for batch in await all_parcels(outbox, 20)] == [20, 10]


async def test_a_large_batch_is_cut_so_that_no_parcel_grows_with_it(outbox: Outbox) -> None:
    rows = marks(12_000)
    await outbox.append({"mark_price": rows})
    batches = [batch["mark_price"] for batch in await all_parcels(outbox)]
    assert [len(batch) for batch in batches] == [5_000, 5_000, 2_000]
    assert [row for batch in reversed(batches) for row in batch] == rows


async def test_a_parcel_is_handed_out_again_until_it_is_settled(outbox: Outbox) -> None:
    await outbox.append({"ohlcv_3m": [ohlcv()]})
    first = await taken(outbox)
    assert await taken(outbox) == first
    await outbox.settle(first, Settled(1))
    assert await outbox.take(5_000) is None


async def test_depth_tells_what_waits(path: Path) -> None:
    clock = Clock(speed=1e-9, start_ms=TIME)
    outbox = await Outbox.open(path, PLENTY, clock)
    try:
        assert outbox.depth() == Depth()
        await outbox.append({"ohlcv_3m": [ohlcv()], "mark_price": marks(2)})
        size = len(orjson.dumps([tuple(ohlcv())]) + orjson.dumps([tuple(m) for m in marks(2)]))
        assert outbox.depth() == Depth(rows=3, bytes=size, oldest_ms=TIME)
        await all_parcels(outbox)
        assert outbox.depth() == Depth()
    finally:
        await outbox.close()


async def test_nothing_appended_is_nothing_kept(outbox: Outbox) -> None:
    await outbox.append({})
    await outbox.append({"ohlcv_3m": []})
    assert outbox.depth() == Depth()


async def test_rejected_rows_go_to_the_quarantine_with_the_sinks_words(
    outbox: Outbox, path: Path
) -> None:
    good, bad = ohlcv(), ohlcv(time=TIME + 180_000)
    await outbox.append({"ohlcv_3m": [good, bad]})
    rejected = Rejected("ohlcv_3m", bad, "422 older than the retention")
    await outbox.settle(await taken(outbox), Settled(1, (rejected,)))
    assert outbox.depth() == Depth(quarantined=1)
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT measurement, row, reason FROM quarantine").fetchall()
    assert [(m, tuple(orjson.loads(row)), why) for m, row, why in found] == [
        ("ohlcv_3m", tuple(bad), "422 older than the retention")
    ]


async def test_of_rejected_ticks_only_the_newest_are_kept_and_the_others_counted(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.quarantine.QUARANTINED_TICKS", 10)
    for start in (0, 8):
        rows = marks(8, start=TIME + start)
        await outbox.append({"mark_price": rows})
        rejected = tuple(Rejected("mark_price", row, "no") for row in rows)
        await outbox.settle(await taken(outbox), Settled(0, rejected))
    assert outbox.depth().quarantined == 10
    assert outbox.dropped == {"quarantine_full.mark_price": 6}


async def test_at_the_bound_ticks_go_by_kind_and_age_and_candles_never(path: Path) -> None:
    def batch(n: int) -> Batch:
        names = EXCHANGE, SYMBOL, TIME + n
        return {
            "ohlcv_3m": [ohlcv(time=TIME + n * 180_000)],
            "mark_price": [MarkPrice(*names, 1.0, None)],
            "funding_rate": [FundingRate(*names, 1e-4, None, None, None)],
            "last_price": [LastPrice(*names, 1.0)],
        }

    size = {
        name: len(orjson.dumps([tuple(row) for row in rows])) for name, rows in batch(0).items()
    }
    bound = 10 * size["ohlcv_3m"] + 10 * size["last_price"] + 5 * size["funding_rate"] + 20
    outbox = await Outbox.open(path, bound)
    try:
        for n in range(10):
            await outbox.append(batch(n))
        assert outbox.depth().bytes <= bound
        assert outbox.dropped == {"outbox_full.mark_price": 10, "outbox_full.funding_rate": 5}
        kept: dict[str, list[int]] = {}
        for parcel in await all_parcels(outbox):
            for name, rows in parcel.items():
                kept.setdefault(name, []).extend(row.time for row in rows)
        assert kept["funding_rate"] == [TIME + n for n in range(5, 10)]
        assert len(kept["last_price"]) == len(kept["ohlcv_3m"]) == 10
        assert "mark_price" not in kept
    finally:
        await outbox.close()


async def test_candles_go_beyond_the_bound(path: Path) -> None:
    outbox = await Outbox.open(path, max_bytes=1)
    try:
        await outbox.append({"ohlcv_3m": [ohlcv()], "last_price": one_of_each()["last_price"]})
        assert outbox.dropped == {"outbox_full.last_price": 1}
        assert await all_parcels(outbox) == [{"ohlcv_3m": [ohlcv()]}]
    finally:
        await outbox.close()


async def test_what_is_with_the_sink_is_not_dropped_under_it(path: Path) -> None:
    size = len(orjson.dumps([tuple(mark())]))
    outbox = await Outbox.open(path, max_bytes=size)
    try:
        await outbox.append({"mark_price": [mark()]})
        parcel = await taken(outbox)
        await outbox.append({"mark_price": [mark(time=TIME + 1)]})
        assert outbox.dropped == {"outbox_full.mark_price": 1}
        await outbox.settle(parcel, Settled(1))
        assert outbox.depth() == Depth()
    finally:
        await outbox.close()


async def test_pending_gives_a_pairs_rows_that_the_store_does_not_have(outbox: Outbox) -> None:
    rows = [ohlcv(time=TIME + n * 60_000) for n in (2, 0, 1, 3)]
    rewritten = ohlcv(time=TIME + 60_000, revision=1)
    others = [ohlcv(symbol="BTC/USDT:USDT-261225"), ohlcv(symbol="币安人生/USDT:USDT")]
    await outbox.append({"ohlcv_1m": [others[0], *rows, others[1]], "ohlcv_3m": [ohlcv()]})
    await outbox.append({"ohlcv_1m": [rewritten]})
    found = await outbox.pending("ohlcv_1m", EXCHANGE, SYMBOL, TIME, TIME + 3 * 60_000)
    assert found == [ohlcv(), rewritten, ohlcv(time=TIME + 120_000)]
    for other in others:
        assert await outbox.pending("ohlcv_1m", EXCHANGE, other.symbol, 0, 2**50) == [other]
    await all_parcels(outbox)
    assert await outbox.pending("ohlcv_1m", EXCHANGE, SYMBOL, 0, 2**50) == []


async def test_waiting_ends_as_soon_as_something_is_there(outbox: Outbox) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(outbox.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        await outbox.append({"ohlcv_3m": [ohlcv()]})
    await all_parcels(outbox)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await outbox.wait()


async def test_an_append_that_is_cancelled_in_the_middle_is_not_forgotten(outbox: Outbox) -> None:
    appending = asyncio.ensure_future(outbox.append({"mark_price": marks(5_000)}))
    await eventually(lambda: outbox.depth().rows or not appending.done())
    appending.cancel()
    await asyncio.gather(appending, return_exceptions=True)
    await outbox.append({"ohlcv_3m": [ohlcv()]})
    waiting = sum(len(rows) for batch in await all_parcels(outbox) for rows in batch.values())
    assert waiting in (1, 5_001)
    assert outbox.depth() == Depth()


async def test_values_that_json_cannot_hold_do_not_cost_their_batch(outbox: Outbox) -> None:
    rows = [ohlcv(), ohlcv(trades=2**70), ohlcv(symbol="\ud800"), ohlcv(quote_volume=nan)]
    await outbox.append({"ohlcv_3m": rows})
    good, huge, broken, absent = (await taken(outbox)).batch["ohlcv_3m"]
    assert good == ohlcv()
    assert huge == ohlcv(trades=str(2**70))  # of the wrong type, so that the sink rejects it
    assert broken == ohlcv(symbol="'\\ud800'")
    assert absent == ohlcv(quote_volume=None)


async def test_another_start_finds_everything(path: Path) -> None:
    outbox = await Outbox.open(path, PLENTY)
    await outbox.append({"ohlcv_3m": [ohlcv()], "mark_price": marks(3)})
    parcel = await taken(outbox)
    (row,) = parcel.batch["ohlcv_3m"]
    await outbox.settle(parcel, Settled(0, (Rejected("ohlcv_3m", row, "no"),)))
    before = outbox.depth()
    await outbox.close()
    outbox = await Outbox.open(path, PLENTY)
    try:
        assert outbox.depth() == before
        assert (await taken(outbox)).batch == {"mark_price": marks(3)}
    finally:
        await outbox.close()


async def test_a_second_process_is_refused_by_name(outbox: Outbox, path: Path) -> None:
    with pytest.raises(StoreRefused, match=r"outbox\.db is in use by another process \(pid \d+\)"):
        await Outbox.open(path, PLENTY)
    await outbox.append({"ohlcv_3m": [ohlcv()]})


async def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file, not a folder")
    with pytest.raises(StoreUnavailable):
        await Outbox.open(tmp_path / "var" / "outbox.db", PLENTY)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """As if the disk were full: no file can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_with_the_disk_full_append_raises_and_afterwards_all_goes_on(outbox: Outbox) -> None:
    await outbox.append({"mark_price": marks(5_000)})
    before = outbox.depth()
    with files_limited_to(512 * 1024), pytest.raises(StoreUnavailable, match="can't be written"):
        await outbox.append({"mark_price": marks(50_000)})
    assert outbox.depth() == before
    await outbox.append({"ohlcv_3m": [ohlcv()]})
    rows = sum(len(r) for batch in await all_parcels(outbox) for r in batch.values())
    assert rows == before.rows + 1


APPENDING = """
import asyncio, sys
from pathlib import Path
from ingest.outbox import Outbox
from tests.stores import mark

async def main():
    outbox = await Outbox.open(Path(sys.argv[1]), 2**30)
    n = 0
    while True:
        await outbox.append({"mark_price": [mark(time=n + i) for i in range(100)]})
        n += 100
        print(n, flush=True)

asyncio.run(main())
"""


async def test_kill_9_costs_nothing_that_append_returned_for(path: Path) -> None:
    for _ in range(2):  # the second round also finds what the first one left
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", APPENDING, path], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert process.stdout is not None
        with process.stdout:
            while int(process.stdout.readline()) < 2_000:
                pass
            process.send_signal(signal.SIGKILL)
            promised = [2_000, *map(int, process.stdout.read().split())][-1]
        assert process.wait() == -signal.SIGKILL
        outbox = await Outbox.open(path, PLENTY)
        try:
            times = [row.time for batch in await all_parcels(outbox) for row in batch["mark_price"]]
        finally:
            await outbox.close()
        assert times == list(range(len(times)))
        assert promised <= len(times) <= promised + 100
