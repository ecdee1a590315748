from decimal import Decimal

from ingest.hot import HotState
from ingest.model import Kline
from marketdata.schema import FundingRate, LastPrice, MarkPrice

KEY = ("BYBIT", "BTC/USDT:USDT")


def kline(event_ms, close, *, closed=False, minute_ms=60_000):
    return Kline(
        *KEY, minute_ms, 1.0, 9.0, 1.0, close, Decimal("0.5"), None, None, closed, event_ms
    )


def newest(hot):
    last = hot.get(KEY)
    assert last is not None
    return last


def test_every_channel_fills_its_own_columns():
    hot = HotState()
    hot.put(MarkPrice(*KEY, 1_000, 5.0, 4.9), 1_010)
    hot.put(FundingRate(*KEY, 1_001, 0.0001, None, 28_800_000, 8.0), 1_011)
    hot.put(LastPrice(*KEY, 1_002, 5.1), 1_012)
    hot.put(kline(1_003, 5.2), 1_013)
    last = newest(hot)
    assert (last.mark_price, last.index_price, last.mark_event_ms) == (5.0, 4.9, 1_000)
    assert (last.funding_rate, last.next_funding_ms, last.interval_hours) == (
        0.0001,
        28_800_000,
        8.0,
    )
    assert (last.price, last.price_event_ms) == (5.1, 1_002)
    assert (last.minute_ms, last.close, last.volume, last.trades) == (60_000, 5.2, 0.5, None)
    assert (last.received_ms, last.seq) == (1_013, 4)


def test_a_late_message_never_replaces_a_newer_value():
    hot = HotState()
    changed = hot.subscribe()
    hot.put(kline(2_000, 5.0), 2_001)
    hot.take(changed)
    hot.put(kline(1_000, 4.0), 2_002)
    assert newest(hot).close == 5.0
    assert hot.take(changed) == []


def test_each_subscriber_learns_of_each_change_once():
    hot = HotState()
    one, other = hot.subscribe(), hot.subscribe()
    hot.put(LastPrice(*KEY, 1_000, 5.0), 1_001)
    assert len(hot.take(one)) == 1
    assert hot.take(one) == []
    assert len(hot.take(other)) == 1


def test_a_forgotten_pair_is_not_published_any_more():
    hot = HotState()
    changed = hot.subscribe()
    hot.put(LastPrice(*KEY, 1_000, 5.0), 1_001)
    hot.forget([KEY])
    assert hot.take(changed) == []
    assert hot.get(KEY) is None
