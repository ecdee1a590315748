"""The inbox: order, bound, what goes first, and that every loss is counted."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from ingest.backends import InboxBackend
from ingest.inbox import Inbox
from ingest.model import Event, Kline
from marketdata.schema import FundingRate, LastPrice, MarkPrice


def minute(number: int, *, closed: bool) -> Kline:
    return Kline(
        "X", "A/B", number * 60_000, 1.0, 1.0, 1.0, 1.0, Decimal(1), None, None, closed, number
    )


def mark(number: int) -> MarkPrice:
    return MarkPrice("X", "A/B", number, 1.0, None)


def held(inbox: Inbox) -> list[Event]:
    return [event for event, _ in inbox.drain()]


def test_events_come_out_in_the_order_of_their_arrival_with_their_times() -> None:
    inbox = Inbox()
    inbox.put(mark(1), received_ms=11)
    inbox.put(minute(2, closed=True), received_ms=12)
    assert inbox.drain() == [(mark(1), 11), (minute(2, closed=True), 12)]
    assert inbox.drain() == []


def test_the_oldest_ticks_go_first_and_closed_minutes_stay() -> None:
    inbox = Inbox(capacity=4)
    for event in (minute(1, closed=True), mark(2), mark(3), minute(4, closed=True), mark(5)):
        inbox.put(event, received_ms=0)
    assert held(inbox) == [minute(1, closed=True), mark(3), minute(4, closed=True), mark(5)]
    assert inbox.dropped == {"mark_price": 1}


def test_a_forming_minute_is_a_tick() -> None:
    inbox = Inbox(capacity=1)
    inbox.put(minute(1, closed=False), received_ms=0)
    inbox.put(minute(1, closed=True), received_ms=0)
    assert held(inbox) == [minute(1, closed=True)]
    assert inbox.dropped == {"candles": 1}


def test_closed_minutes_are_bounded_too() -> None:
    inbox = Inbox(capacity=3)
    for number in range(10):
        inbox.put(minute(number, closed=True), received_ms=0)
    assert held(inbox) == [minute(number, closed=True) for number in (7, 8, 9)]
    assert inbox.dropped == {"candles": 7}


@given(st.integers(1, 40), st.lists(st.sampled_from("cfml"), max_size=200))
def test_whatever_comes_nothing_is_lost_uncounted_and_no_closed_minute_before_a_tick(
    capacity: int, kinds: list[str]
) -> None:
    made: dict[str, Event] = {
        "c": minute(1, closed=True),
        "f": FundingRate("X", "A/B", 1, 0.1, None, None, None),
        "m": mark(1),
        "l": LastPrice("X", "A/B", 1, 5.0),
    }
    inbox = Inbox(capacity=capacity)
    for kind in kinds:
        inbox.put(made[kind], received_ms=0)
        assert len(inbox) <= capacity
    kept = held(inbox)
    assert len(kept) + inbox.dropped.total() == len(kinds)
    if kinds.count("c") <= capacity:
        assert inbox.dropped["candles"] == 0


async def test_a_consumer_waits_until_there_is_something() -> None:
    inbox = Inbox()
    consumer = asyncio.ensure_future(inbox.wait())
    await asyncio.sleep(0)
    assert not consumer.done()
    inbox.put(mark(1), received_ms=0)
    await consumer
    inbox.drain()
    again = asyncio.ensure_future(inbox.wait())
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()


async def test_the_callback_hands_over_milliseconds_of_receipt_exactly() -> None:
    inbox = Inbox()
    backend = InboxBackend(inbox)
    for received_ms in range(1_791_382_980_000, 1_791_382_981_000):
        await backend(mark(1), received_ms / 1000)
    assert [ms for _, ms in inbox.drain()] == list(range(1_791_382_980_000, 1_791_382_981_000))
