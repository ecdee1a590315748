"""What leaves the outbox next: by shelves, newest first, what fails later, as much as goes well."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.outbox import Outbox, Parcel, Shelf
from ingest.outbox_file import OutboxFile
from ingest.outbox_records import SHARD_MS
from ingest.shelves import LEAST_ROWS, MOST_ROWS, PARCEL_S, ParcelSize, Shelves
from ingest.sinks.base import Settled
from marketdata.schema import Row
from tests.stores import TIME, mark, ohlcv

SHARD = TIME // SHARD_MS


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = await Outbox.open(tmp_path / "outbox.db", 2**30)
    yield outbox
    await outbox.close()


async def taken(outbox: Outbox, max_rows: int = 5_000, skip: tuple[Shelf, ...] = ()) -> Parcel:
    parcel = await outbox.take(max_rows, skip)
    assert parcel is not None
    return parcel


async def fill(outbox: Outbox) -> None:
    """A mark and two states of a candle on shelves of three months, the oldest last."""
    for months in (2, 0, 1):
        time = TIME - months * SHARD_MS
        await outbox.append({"mark_price": [mark(time=time)], "ohlcv_3m": [ohlcv(time=time)]})
        await outbox.append({"ohlcv_3m": [ohlcv(time=time, revision=1)]})


async def test_candles_leave_before_ticks_and_newer_shards_before_older_ones(
    outbox: Outbox,
) -> None:
    await fill(outbox)
    order = []
    while parcel := await outbox.take(5_000):
        order.append(parcel.shelf)
        await outbox.settle(parcel, Settled(parcel.rows))
    assert order == [Shelf(tick, SHARD - n) for tick in (False, True) for n in range(3)]


async def test_the_states_of_a_candle_leave_in_their_order_and_ticks_newest_first(
    outbox: Outbox,
) -> None:
    for n in range(6):
        await outbox.append(
            {"ohlcv_3m": [ohlcv(revision=n)], "mark_price": [mark(time=TIME + n)] * 2}
        )
    revisions: list[int] = []
    times: list[list[int]] = []
    while parcel := await outbox.take(4):
        await outbox.settle(parcel, Settled(parcel.rows))
        revisions += [row.revision for row in parcel.batch.get("ohlcv_3m", ())]  # type: ignore[union-attr]
        times.append([row.time - TIME for row in parcel.batch.get("mark_price", ())])
    assert revisions == list(range(6))
    assert times[2:] == [[4, 4, 5, 5], [2, 2, 3, 3], [0, 0, 1, 1]]


async def test_ticks_that_come_during_an_outage_are_in_the_next_parcel(outbox: Outbox) -> None:
    old: list[Row] = [mark(time=TIME + n) for n in range(3_000)]
    for start in range(0, 3_000, 100):
        await outbox.append({"mark_price": old[start : start + 100]})
    failed = await taken(outbox, 200)
    await outbox.append({"mark_price": [mark(time=TIME + 5_000)]})
    again = await taken(outbox, 200)
    assert again.batch["mark_price"][-1].time == TIME + 5_000
    await outbox.settle(again, Settled(again.rows))
    assert outbox.depth().rows == 3_001 - again.rows
    assert failed.shelf == again.shelf


async def test_shelves_that_are_set_aside_are_passed_over(outbox: Outbox) -> None:
    await fill(outbox)
    newest, next_one = Shelf(False, SHARD), Shelf(False, SHARD - 1)
    assert (await taken(outbox)).shelf == newest
    assert (await taken(outbox, skip=(newest,))).shelf == next_one
    assert (await taken(outbox, skip=(newest, next_one))).shelf == Shelf(False, SHARD - 2)
    candles = tuple(Shelf(False, SHARD - n) for n in range(3))
    assert (await taken(outbox, skip=candles)).shelf == Shelf(True, SHARD)
    ticks = tuple(Shelf(True, SHARD - n) for n in range(3))
    assert await outbox.take(5_000, (*candles, *ticks)) is None
    assert outbox.depth().rows == 9


def test_a_parcel_costs_the_same_however_much_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remembered(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remembered)

    def steps(file: OutboxFile, *skip: Shelf) -> int:
        """Hundreds of SQLite's own steps for one parcel of 100 rows."""
        count = 0

        def counted() -> int:
            nonlocal count
            count += 1
            return 0

        opened[-1].set_progress_handler(counted, 100)
        assert file.take(100, skip) is not None
        return count

    costs = []
    for records in (200, 5_000):
        file = OutboxFile(tmp_path / f"{records}.db", 2**30, lambda: TIME)
        try:
            # One record each, since no two in a row are of one shard.
            file.append(
                {"mark_price": [mark(time=TIME - n % 2 * SHARD_MS + n) for n in range(records)]},
                TIME,
            )
            costs.append((steps(file), steps(file, Shelf(True, SHARD))))
        finally:
            file.close()
    few, many = costs
    assert many <= tuple(cost + 2 for cost in few)


@settings(max_examples=30)
@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    bad=st.sets(st.integers(0, 7)),
    dice=st.randoms(use_true_random=False),
)
def test_sound_shelves_are_stored_whatever_fails_and_what_fails_is_tried_for_ever(
    rows: list[int], bad: set[int], dice: Random
) -> None:
    """Parcels of a second each, from shelves of which the bad ones fail for five minutes."""
    waiting = {Shelf(False, -n): count for n, count in enumerate(rows)}
    failing = {Shelf(False, -n) for n in bad} & waiting.keys()
    shelves = Shelves(dice.uniform)
    tried_ms = dict.fromkeys(failing, 0)
    for now_ms in range(0, 600_000, 1_000):
        aside = shelves.aside(now_ms)
        shelf = next((shelf for shelf in waiting if shelf not in aside), None)
        if shelf is None:
            shelves.wait_ms(now_ms)
        elif shelf in failing and now_ms < 300_000:
            shelves.failed(shelf, 100, now_ms, took_s=1.0)
            assert now_ms - tried_ms[shelf] <= 120_000
            tried_ms[shelf] = now_ms
        else:
            shelves.stored(shelf)
            assert shelves.doubted == 0
            waiting[shelf] -= 1
            if not waiting[shelf]:
                del waiting[shelf]
        # What fails takes a second each time, and grows rarer: here less than half of the time.
        assert now_ms < 200_000 or waiting.keys() <= failing
    assert not waiting
    assert (shelves.doubted, shelves.alone) == (0, 0)


def test_a_shelf_rests_as_long_as_the_store_asks_for():
    shelf, shelves = Shelf(False, SHARD), Shelves(uniform=lambda low, high: high)
    shelves.failed(shelf, 100, now_ms=0, took_s=0.1, asked_s=120.0)
    assert shelves.aside(now_ms=119_000) == {shelf}
    assert shelves.aside(now_ms=120_000) == set()


@given(st.lists(st.tuples(st.integers(1, 6_000), st.floats(0, 30)), max_size=50))
def test_a_parcels_size_stays_in_its_bounds_and_fits_the_stores_speed(
    before: list[tuple[int, float]],
) -> None:
    size = ParcelSize()
    for rows, seconds in before:
        size.took(rows, seconds)
        assert LEAST_ROWS <= size.rows <= MOST_ROWS
    for rows_per_s in (500, 8_000, 200_000):
        for _ in range(10):
            size.took(size.rows, size.rows / rows_per_s)
        fitting = min(MOST_ROWS, max(LEAST_ROWS, rows_per_s * PARCEL_S))
        assert size.rows == pytest.approx(fitting, rel=0.01, abs=1)
