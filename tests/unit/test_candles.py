from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.candles import CandleBook, is_exact, synthetic_minute
from ingest.model import Kline
from marketdata.schema import CANDLE_MS, MINUTE_MS, Ohlcv

START_MS = 1_790_000_100_000 - 1_790_000_100_000 % CANDLE_MS


def minute(n, price=100.0, *, volume="1", trades=1, source="stream", event_ms=None, high=None):
    open_ms = START_MS + n * MINUTE_MS
    return Kline(
        "BYBIT", "BTC/USDT:USDT", open_ms, price, high or price, price, price,
        Decimal(volume), Decimal(volume) * Decimal(str(price)), trades, True,
        open_ms + MINUTE_MS if event_ms is None else event_ms, source,
    )  # fmt: skip


@st.composite
def whole_minutes(draw):
    prices = st.integers(1, 10**9).map(lambda cents: cents / 100)
    volumes = st.decimals(0, 10**9, places=8, allow_nan=False, allow_infinity=False)
    klines = []
    for n in range(draw(st.integers(3, 12))):
        low, price, high = sorted(draw(st.tuples(prices, prices, prices)))
        volume = draw(volumes)
        klines.append(
            minute(n, price, volume=str(volume), trades=int(volume > 0), high=high)._replace(
                low=low
            )
        )
    return klines


def final_candles(klines):
    book = CandleBook()
    for kline in klines:
        book.apply([kline])
    return book.candles


@given(whole_minutes(), st.randoms(use_true_random=False))
def test_any_order_and_any_duplication_of_the_same_minutes_gives_the_same_candles(klines, random):
    expected = final_candles(klines)
    shuffled = klines + random.choices(klines, k=5)
    random.shuffle(shuffled)
    assert final_candles(shuffled) == expected
    assert {row.revision for row in expected.values()} <= {0}


@given(st.permutations(range(4)))
def test_of_differing_statements_the_later_one_counts_whatever_the_order(order):
    statements = [
        minute(0, price, event_ms=START_MS + n) for n, price in enumerate((1.0, 2.0, 3.0))
    ]
    statements.append(synthetic_minute("BYBIT", "BTC/USDT:USDT", START_MS, 9.0))
    book = CandleBook()
    for n in order:
        book.apply([statements[n]])
    assert book.minutes[START_MS].close == 3.0


def test_synthetic_minutes_follow_the_close_before_them_in_any_order():
    first = minute(0, 7.0)
    empty = [
        synthetic_minute("BYBIT", "BTC/USDT:USDT", START_MS + n * MINUTE_MS, 1.0) for n in (1, 2)
    ]
    one, other = CandleBook(), CandleBook()
    for kline in (first, *empty):
        one.apply([kline])
    for kline in (*reversed(empty), first):
        other.apply([kline])
    assert one.minutes == other.minutes
    assert one.minutes[START_MS + 2 * MINUTE_MS].close == 7.0


def test_a_candle_waits_for_its_three_minutes():
    book = CandleBook()
    assert book.apply([minute(0), minute(2)]).candles == []
    assert [row.time for row in book.apply([minute(1)]).candles] == [START_MS]


def test_volumes_are_summed_as_decimals_before_they_are_rounded():
    book = CandleBook()
    (candle,) = book.apply(
        [minute(0, volume="0.1"), minute(1, volume="0.2"), minute(2, volume="0.3")]
    ).candles
    assert candle.volume == 0.6
    assert 0.1 + 0.2 + 0.3 != 0.6


def test_a_revised_minute_rewrites_the_candle_and_raises_the_revision_once():
    book = CandleBook()
    book.apply([minute(n) for n in range(3)])
    changes = book.apply(
        [minute(1, 100.0, high=105.0, source="rest", event_ms=START_MS + CANDLE_MS)]
    )
    assert [(row.revision, row.source) for row in changes.minutes] == [(1, "rest")]
    assert [(row.revision, row.high, row.source) for row in changes.candles] == [(1, 105.0, "rest")]
    assert book.apply([minute(1, 100.0, high=105.0, source="rest")]) == ([], [])


def test_the_same_minute_by_rest_changes_nothing():
    book = CandleBook()
    book.apply([minute(n) for n in range(3)])
    again = [minute(n, source="rest", event_ms=START_MS + CANDLE_MS) for n in range(3)]
    assert book.apply(again) == ([], [])
    assert book.candles[START_MS].source == "stream"


def test_sources_tell_how_the_minutes_came():
    def source(*sources):
        return final_candles([minute(n, source=s) for n, s in enumerate(sources)])[START_MS].source

    assert source("stream", "stream", "stream") == "stream"
    assert source("stream", "rest", "stream") == "rest"
    assert source("synthetic", "stream", "stream") == "rest"
    assert source("synthetic", "synthetic", "synthetic") == "synthetic"


def test_a_candle_without_a_trade_is_flat_at_the_previous_close():
    klines = [minute(n, 50.0) for n in range(3)]
    klines += [minute(n, 50.0, volume="0", trades=0) for n in range(3, 6)]
    candle = final_candles(klines)[START_MS + CANDLE_MS]
    assert candle[3:8] == (50.0, 50.0, 50.0, 50.0, 0.0)


def test_minutes_without_trades_take_no_part_in_open_high_and_low():
    klines = [minute(0, 90.0, volume="0", trades=0), minute(1, 100.0), minute(2, 101.0)]
    candle = final_candles(klines)[START_MS]
    assert (candle.open, candle.high, candle.low, candle.close) == (100.0, 101.0, 100.0, 101.0)


def test_a_field_that_the_exchange_does_not_give_stays_absent():
    klines = [minute(n)._replace(trades=None, quote_volume=None) for n in range(3)]
    candle = final_candles(klines)[START_MS]
    assert candle.trades is None
    assert candle.quote_volume is None


def test_loaded_rows_keep_their_revision_and_source():
    book = CandleBook()
    stored = [
        Ohlcv("BYBIT", "BTC/USDT:USDT", START_MS + n * MINUTE_MS, 100.0, 100.0, 100.0, 100.0,
              1.0, 100.0, 1, "stream", 2)
        for n in range(3)
    ]  # fmt: skip
    candle = stored[0]._replace(volume=3.0, quote_volume=300.0, trades=3, revision=4)
    book.load(stored, [candle])
    assert book.apply([minute(n, source="rest") for n in range(3)]) == ([], [])
    changes = book.apply([minute(2, 101.0)])
    assert changes.minutes[0].revision == 3
    assert changes.candles[0].revision == 5


def test_pruning_keeps_whole_candles():
    book = CandleBook(horizon_ms=6 * MINUTE_MS)
    book.apply([minute(n) for n in range(12)])
    book.prune(START_MS + 10 * MINUTE_MS)
    assert min(book.minutes) == START_MS + 3 * MINUTE_MS
    assert set(book.revisions) == set(book.minutes)


# Several collectors on one store


class Collector:
    """A book, and rows on their way from it to the store that it shares."""

    def __init__(self, store):
        self.book, self.store = CandleBook(), store
        self.outbox: list[tuple[str, Ohlcv]] = []

    def hear(self, statement):
        self._send(self.book.apply([statement]))

    def repair(self, statement):
        """Ask the store, and then the exchange if that is not answer enough."""
        minutes, candles = self._stored()
        known = {row.time for row in minutes} | self.book.minutes.keys()
        enough = statement.minute_ms in known and not self.book.disputed(minutes, candles)
        said = [] if enough else [statement._replace(source="rest")]
        self._send(self.book.merge(said, minutes, candles))

    def agree(self, truth):
        minutes, candles = self._stored()
        said = [truth[time_ms] for time_ms in sorted(self.book.disputed(minutes, candles))]
        self._send(self.book.merge(said, minutes, candles))

    def deliver(self, rows=None):
        for name, row in self.outbox[:rows]:
            self.store[name][row.time] = row
        del self.outbox[:rows]

    def deliver_candles(self, rows):
        """As when the others have to wait."""
        self.outbox.sort(key=lambda row: row[0], reverse=True)
        self.deliver(rows)

    def rows(self):
        book = self.book
        merged = book.merge([], [], [])
        assert merged == ([], [])
        return (
            {t: (kline[3:7], kline.source, book.revisions[t]) for t, kline in book.minutes.items()},
            book.candles,
        )

    def _stored(self):
        return [list(self.store[name].values()) for name in ("ohlcv_1m", "ohlcv_3m")]

    def _send(self, changes):
        self.outbox += [("ohlcv_1m", row) for row in changes.minutes]
        self.outbox += [("ohlcv_3m", row) for row in changes.candles]


def versions_of(n, count):
    """What the exchange says of a minute, and how it corrects itself."""
    later = [START_MS + (n + 1) * MINUTE_MS + 1_000 * k for k in range(count)]
    return [
        minute(n, 100.0 + n, high=200.0 + k, volume=f"0.{n + 1}", event_ms=event_ms)
        for k, event_ms in enumerate(later)
    ]


@st.composite
def two_lives(draw, most_versions):
    """Each minute's versions, and what happens to two collectors in which order."""
    versions = [versions_of(n, draw(st.integers(1, most_versions))) for n in range(4)]
    steps = []
    for of_minute in versions:
        # Each hears of each minute one way or the other, and one of them the last word.
        for who in (0, 1):
            steps += [
                (who, draw(st.sampled_from(["hear", "repair"])), statement)
                for statement in draw(st.lists(st.sampled_from(of_minute), min_size=1, max_size=3))
            ]
        steps.append((draw(st.integers(0, 1)), "hear", of_minute[-1]))
    deliver = st.sampled_from(["deliver", "deliver_candles"])
    deliveries = st.tuples(st.integers(0, 1), deliver, st.integers(1, 9))
    steps += draw(st.lists(deliveries, max_size=8))
    return versions, draw(st.permutations(steps))


def lived(versions, steps):
    """Two collectors after that, and after each has held its book against the store."""
    store: dict[str, dict[int, Ohlcv]] = {"ohlcv_1m": {}, "ohlcv_3m": {}}
    both = [Collector(store), Collector(store)]
    for who, what, which in steps:
        getattr(both[who], what)(which)
    truth = {
        of_minute[-1].minute_ms: of_minute[-1]._replace(source="rest", event_ms=2**50)
        for of_minute in versions
    }
    for one in both:
        one.deliver()
    for one in both + both:
        one.agree(truth)
        one.deliver()
    return both, store, truth


@settings(max_examples=50, deadline=None)
@given(two_lives(most_versions=3))
def test_two_collectors_come_to_the_same_rows_whichever_writes_last(life):
    both, store, truth = lived(*life)
    one, other = both
    assert one.rows() == other.rows()
    assert one.rows()[1] == store["ohlcv_3m"]
    expected = final_candles(list(truth.values()))
    assert {t: row[3:9] for t, row in store["ohlcv_3m"].items()} == {
        t: row[3:9] for t, row in expected.items()
    }
    for time_ms, row in store["ohlcv_1m"].items():
        said = truth[time_ms]
        assert (row.high, row.volume) == (said.high, float(said.volume))
        assert (row[3:7], row.source, row.revision) == one.rows()[0][time_ms]
    for collector in both:
        collector.agree(truth)
        assert collector.outbox == [], "nobody writes what is there"


@settings(max_examples=50, deadline=None)
@given(two_lives(most_versions=1))
def test_two_collectors_make_no_revision_of_what_the_exchange_has_not_changed(life):
    _, store, _ = lived(*life)
    assert {row.revision for rows in store.values() for row in rows.values()} == {0}
    heard = {s.minute_ms for _, what, s in life[1] if what == "hear"}
    assert heard == store["ohlcv_1m"].keys()


def stored_minute(n, **changes):
    row = CandleBook().apply([minute(n)]).minutes[0]
    return row._replace(**changes)


def test_what_the_store_has_with_the_same_values_is_not_written_again():
    stored = [stored_minute(n, revision=2) for n in range(3)]
    book = CandleBook()
    candle = CandleBook().merge([], stored, []).candles[0]._replace(revision=4)
    again = [minute(n, source="rest") for n in range(3)]
    assert book.merge(again, stored, [candle]) == ([], [])
    assert set(book.revisions.values()) == {2}
    assert book.candles[START_MS] == candle


def test_a_candle_that_nobody_made_is_made_of_stored_minutes():
    book = CandleBook()
    (candle,) = book.merge([], [stored_minute(n) for n in range(3)], []).candles
    assert (candle.volume, candle.source, candle.revision) == (3.0, "stream", 0)


def test_a_correction_that_another_collector_has_heard_is_followed_or_disputed():
    stored = [stored_minute(0)]
    corrected = [stored_minute(0, high=200.0, revision=1)]
    told, heard = CandleBook(), CandleBook()
    told.merge([], stored, [])
    heard.apply([minute(0)])
    assert told.disputed(corrected, []) == set()
    assert told.merge([], corrected, []) == ([], [])
    assert told.minutes[START_MS].high == 200.0
    assert heard.disputed(corrected, []) == {START_MS}
    (row,) = heard.merge([minute(0, event_ms=2**50)], corrected, []).minutes
    assert (row.high, row.revision) == (100.0, 2), "the exchange takes it back"


def test_a_disputed_minute_that_the_exchange_has_not_said_anew_stays_as_it_is_stored():
    stored = [stored_minute(0, high=200.0, revision=1), stored_minute(1), stored_minute(2)]
    candle = CandleBook().merge([], stored, []).candles[0]
    book = CandleBook()
    book.apply([minute(n) for n in range(3)])
    assert book.merge([], stored, [candle]) == ([], [])
    assert START_MS in book.disputed(stored, [candle]), "and it is asked again"
    answered = book.merge([minute(0, event_ms=2**50)], stored, [candle])
    assert [row.revision for row in answered.minutes] == [2]
    assert [row.revision for row in answered.candles] == [candle.revision + 1]
    late = CandleBook()
    late.apply([minute(0)])
    assert late.merge([], stored, []).candles, "a candle that nobody has is made all the same"


def test_a_candle_that_is_read_before_the_minute_that_changed_it_is_not_taken_back():
    before = [stored_minute(n) for n in range(3)]
    corrected = [stored_minute(0, high=200.0, revision=1), *before[1:]]
    candle = CandleBook().merge([], corrected, []).candles[0]._replace(revision=1)
    said = {t: minute(t, high=200.0 if t == 0 else 100.0, event_ms=2**50) for t in range(3)}
    heard, told = CandleBook(), CandleBook()
    heard.apply([minute(n) for n in range(3)])
    told.merge([], before, [])
    for book in (heard, told):
        assert book.merge([], before, [candle]) == ([], [])
        assert book.disputed(before, [candle]) == {kline.minute_ms for kline in said.values()}
        assert book.merge(said.values(), before, [candle]).candles == []
        assert book.candles[START_MS] == candle


def test_volumes_that_may_have_been_rounded_are_not_summed():
    said = minute(0, volume=str(0.1 + 0.2))
    (rounded,) = CandleBook().apply([said]).minutes
    assert not is_exact(rounded)
    book = CandleBook()
    assert book.merge([], [rounded], []) == ([], [])
    assert book.minutes == {}
    assert book.merge([said._replace(source="rest")], [rounded], []) == ([], [])
    assert book.minutes.keys() == {START_MS}


def test_a_made_up_minute_gives_way_to_what_another_collector_has_heard():
    book = CandleBook()
    book.apply([minute(0), synthetic_minute("BYBIT", "BTC/USDT:USDT", START_MS + MINUTE_MS, 1.0)])
    heard = stored_minute(1, close=105.0, high=105.0)
    assert book.disputed([heard], []) == set()
    assert book.merge([], [heard], []) == ([], [])
    assert book.minutes[START_MS + MINUTE_MS].close == 105.0
