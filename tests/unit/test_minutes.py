from collections import defaultdict
from decimal import Decimal

from ingest.candles import CandleBook
from ingest.freshness import Freshness
from ingest.minutes import GRACE_MS, MinuteWatch
from ingest.model import Kline
from marketdata.schema import CANDLE_MS, MINUTE_MS

PAIR = "BTC/USDT:USDT"
T0 = 1_790_000_100_000 - 1_790_000_100_000 % CANDLE_MS


class Watched:
    def __init__(self):
        self.books: defaultdict[tuple[str, str], CandleBook] = defaultdict(CandleBook)
        self.freshness = Freshness(lambda pair, channel: "lane")
        self.freshness.follow({PAIR: ["candles"]}, T0)
        self.freshness.connection("lane", up=True, now_ms=T0 - 1)
        self.watch = MinuteWatch("X", self.books, self.freshness)
        self.watch.follow(PAIR, T0)

    def minute(self, n):
        open_ms = T0 + n * MINUTE_MS
        kline = Kline("X", PAIR, open_ms, 1.0, 1.0, 1.0, 1.0, Decimal(1), None, None, True, open_ms)
        self.books["X", PAIR].apply([kline])

    def look(self, minutes, late_ms=GRACE_MS):
        return self.watch.look(PAIR, T0 + minutes * MINUTE_MS + late_ms)

    def gaps(self):
        rows = self.watch.ledger.rows()
        return [
            ((g.time - T0) // MINUTE_MS, (g.until_ms - T0) // MINUTE_MS, g.reason, g.state)
            for g in rows
        ]


def test_a_minute_is_missing_four_seconds_after_its_close():
    watched = Watched()
    assert watched.look(1, GRACE_MS - 1) == []
    assert [hole.minutes for hole in watched.look(1)] == [1]
    assert watched.gaps() == [(0, 1, "silent", "open")]


def test_a_minute_that_comes_late_by_stream_closes_its_gap():
    watched = Watched()
    watched.look(1)
    watched.gaps()
    watched.minute(0)
    assert watched.look(1) == []
    assert watched.gaps() == [(0, 1, "silent", "repaired")]


def test_a_later_minute_that_came_leaves_an_earlier_hole_as_it_is():
    watched = Watched()
    watched.minute(1)
    (hole,) = watched.look(2)
    assert ((hole.start_ms - T0) // MINUTE_MS, hole.minutes) == (0, 1)


def test_the_reason_is_that_of_each_minute():
    watched = Watched()
    watched.look(1)
    watched.freshness.connection("lane", up=False, now_ms=T0 + 90_000)
    watched.look(2)
    watched.freshness.connection("lane", up=True, now_ms=T0 + 150_000)
    watched.look(3)
    watched.look(4)
    assert [(start, until, reason) for start, until, reason, _ in watched.gaps()] == [
        (0, 1, "silent"),
        (1, 3, "disconnected"),
        (3, 4, "silent"),
    ]


def test_a_message_that_was_lost_on_our_side_is_the_reason_given():
    watched = Watched()
    watched.watch.dropped(T0 + MINUTE_MS + 100)
    watched.look(1)
    assert watched.gaps() == [(0, 1, "dropped", "open")]


def test_a_quiet_pair_is_looked_at_once_a_candle():
    watched = Watched()
    watched.freshness.confirm_quiet(PAIR, T0 + 10 * MINUTE_MS)
    watched.freshness.tick(T0 + MINUTE_MS)
    assert watched.freshness.state(PAIR, "candles") == "quiet"
    assert watched.look(2) == []
    assert [hole.minutes for hole in watched.look(3)] == [3]


def test_what_was_repaired_long_after_needs_no_book():
    watched = Watched()
    watched.look(2)
    watched.watch.settle(PAIR, [T0, T0 + MINUTE_MS])
    assert watched.look(2) == []
