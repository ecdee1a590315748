"""Connection plans and the judgement of a connection by its data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.exchanges import EXCHANGES, bybit
from ingest.exchanges import binance_futures as binance
from ingest.supervision import Lane, Liveness
from marketdata.exchanges import CHANNELS_OF
from marketdata.pairs import Market
from tests.feeds import market

ALL = ("candles", "funding", "mark_price", "last_price")


def perpetuals(count: int, exchange: str = "BINANCE_FUTURES") -> list[Market]:
    return [market(f"C{n}/USDT:USDT", exchange=exchange) for n in range(count)]


def url_of(lane: Lane) -> str:
    return binance.BinanceFutures.address_of(lane)


def test_few_binance_pairs_have_a_mark_stream_each() -> None:
    (lane,) = binance.plan_lanes(perpetuals(2), ALL)
    assert lane.url == "wss://fstream.binance.com/market/stream"
    assert lane.topics == (
        "c0usdt@kline_1m",
        "c0usdt@markPrice@1s",
        "c1usdt@kline_1m",
        "c1usdt@markPrice@1s",
    )
    assert lane.streams == 4
    assert lane.lifetime_s == 85_800


def test_the_all_market_marks_are_used_where_they_save_a_connection() -> None:
    (lane,) = binance.plan_lanes(perpetuals(164), ALL)
    assert lane.topics[0] == "!markPrice@arr@1s"
    assert lane.streams == 165


def test_candles_alone_have_no_mark_stream_and_more_patience() -> None:
    (lane,) = binance.plan_lanes(perpetuals(3), ["candles"])
    assert lane.topics == ("c0usdt@kline_1m", "c1usdt@kline_1m", "c2usdt@kline_1m")
    assert lane.silence_s == {"data": 90.0}


def test_marks_alone_have_no_kline_stream() -> None:
    (lane,) = binance.plan_lanes(perpetuals(1), ["funding"])
    assert lane.topics == ("c0usdt@markPrice@1s",)
    assert lane.silence_s == {"data": 10.0, "marks": 10.0}


def test_another_host_replaces_scheme_host_and_port_and_nothing_else() -> None:
    (lane,) = binance.plan_lanes(perpetuals(1), ["candles"], "ws://127.0.0.1:9000")
    assert lane.url == "ws://127.0.0.1:9000/market/stream"
    (lane,) = bybit.plan_lanes([market("A/USDT", exchange="BYBIT")], ALL, "ws://[::1]:9000/")
    assert lane.url == "ws://[::1]:9000/v5/public/spot"


names = st.text(st.characters(categories=["Lu", "Lo", "Nd"]), min_size=1, max_size=30)


@given(st.lists(names, max_size=600, unique=True), st.sampled_from([ALL, ("candles",)]))
def test_no_binance_connection_exceeds_its_limits_and_no_stream_is_lost(
    ids: list[str], channels: tuple[str, ...]
) -> None:
    markets = [market(f"{id}/USDT:USDT") for id in ids]
    lanes = binance.plan_lanes(markets, channels)
    for lane in lanes:
        address = url_of(lane)
        assert address.isascii()
        assert len(address) <= 7_500
        assert lane.streams <= 200
    topics = [topic for lane in lanes for topic in lane.topics]
    assert len(topics) == len(set(topics))
    assert {f"{id}USDT".lower() + "@kline_1m" for id in ids} <= set(topics)


def test_an_id_that_is_not_ascii_counts_as_long_as_it_is_on_the_wire() -> None:
    (lane,) = binance.plan_lanes([market("币安人生/USDT:USDT")], ["candles"])
    assert lane.topics == ("币安人生usdt@kline_1m",)
    assert url_of(lane).endswith("?streams=%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9Fusdt@kline_1m")


def test_bybit_linear_and_spot_have_connections_of_their_own() -> None:
    markets = [
        market("BTC/USDT:USDT", exchange="BYBIT"),
        market("BTC/USDT", exchange="BYBIT"),
        market("BTC/USDT:USDT-261225", exchange="BYBIT", id="BTCUSDT-25DEC26"),
    ]
    linear, spot = bybit.plan_lanes(markets, ALL)
    assert linear.url == "wss://stream.bybit.com/v5/public/linear"
    assert linear.topics == (
        "kline.1.BTCUSDT",
        "tickers.BTCUSDT",
        "kline.1.BTCUSDT-25DEC26",
        "tickers.BTCUSDT-25DEC26",
    )
    assert linear.silence_s == {"data": 10.0, "tickers": 10.0}
    assert spot.url == "wss://stream.bybit.com/v5/public/spot"
    assert spot.topics == ("kline.1.BTCUSDT", "tickers.BTCUSDT")
    assert spot.silence_s == {"data": 90.0}


def test_bybit_spot_has_no_topic_for_channels_that_it_lacks() -> None:
    spot = [market("BTC/USDT", exchange="BYBIT")]
    assert bybit.plan_lanes(spot, ["funding", "mark_price"]) == []
    (lane,) = bybit.plan_lanes(spot, ["candles", "funding"])
    assert lane.topics == ("kline.1.BTCUSDT",)


def test_topics_of_a_bybit_connection_stay_within_its_limit_of_characters() -> None:
    markets = perpetuals(2_000, "BYBIT")
    lanes = bybit.plan_lanes(markets, ALL)
    assert all(sum(map(len, lane.topics)) <= 21_000 for lane in lanes)
    assert sum(lane.streams for lane in lanes) == 4_000
    assert [lane.id for lane in lanes[:2]] == ["linear-1", "linear-2"]


def test_feeds_give_the_channels_that_a_configuration_may_ask_for() -> None:
    assert EXCHANGES.keys() == CHANNELS_OF.keys()
    for exchange, adapter in EXCHANGES.items():
        given = {channel for some in adapter.feed.channels_by_kind.values() for channel in some}
        assert given == set(CHANNELS_OF[exchange]) == set(adapter.channels)


def test_the_registry_says_which_channels_a_kind_of_market_has() -> None:
    adapter = EXCHANGES["BYBIT"]
    assert adapter.channels_of(market("A/USDT", exchange="BYBIT"), ALL) == ("candles", "last_price")
    lanes = adapter.plan([market("A/USDT", exchange="BYBIT")], ["candles"], "ws://host:1")
    assert [lane.url for lane in lanes] == ["ws://host:1/v5/public/spot"]


def liveness(**silence_s: float) -> Liveness:
    return Liveness(Lane("x", "ws://x", (), silence_s), opened_ms=1_000_000)


def test_a_connection_without_first_data_is_overdue_after_fifteen_seconds() -> None:
    judged = liveness(data=90.0)
    assert judged.overdue(1_015_000) is None
    assert judged.overdue(1_015_001) == "no data within 15 s"


def test_marks_that_stay_away_are_missed_though_klines_flow() -> None:
    judged = liveness(data=10.0, marks=10.0)
    for now_ms in range(1_000_000, 1_030_000, 1_000):
        judged.data("marks", now_ms)
    for now_ms in range(1_030_000, 1_039_000, 1_000):
        judged.data("candles", now_ms)
        assert judged.overdue(now_ms) is None
    judged.data("candles", 1_039_500)
    assert judged.overdue(1_039_500) == "no marks for 10 s"


def test_klines_of_many_pairs_that_stay_away_are_missed_though_marks_flow() -> None:
    judged = liveness(data=10.0, marks=10.0, candles=90.0)
    for now_ms in range(1_000_000, 1_091_000, 1_000):
        judged.data("marks", now_ms)
    assert judged.overdue(1_090_000) is None
    assert judged.overdue(1_090_001) == "no candles for 90 s"


@pytest.mark.parametrize(("seconds", "healthy"), [(29, False), (30, True)])
def test_thirty_seconds_of_data_are_healthy(seconds: int, healthy: bool) -> None:
    judged = liveness(data=90.0)
    assert not judged.healthy
    assert judged.data("candles", 1_014_000)
    assert not judged.data("candles", 1_014_000 + seconds * 1_000)
    assert judged.healthy is healthy
