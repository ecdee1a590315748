from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from ingest.candles import CandleBook, synthetic_minute
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
