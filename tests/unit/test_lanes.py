"""Connection plans and the judgement of a connection by its data."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.exchanges import EXCHANGES, bybit
from ingest.exchanges import binance_futures as binance
from ingest.lanes import Lane, change_order
from ingest.liveness import Doubt, Liveness
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


def test_candles_alone_have_no_mark_stream_and_their_silence_is_only_doubted() -> None:
    (lane,) = binance.plan_lanes(perpetuals(3), ["candles"])
    assert lane.topics == ("c0usdt@kline_1m", "c1usdt@kline_1m", "c2usdt@kline_1m")
    assert lane.silence_s == {}
    assert lane.doubt_s == 10.0
    (lane,) = bybit.plan_lanes(perpetuals(1, "BYBIT"), ["candles"])
    assert lane.doubt_s == 10.0


def test_marks_alone_have_no_kline_stream() -> None:
    (lane,) = binance.plan_lanes(perpetuals(1), ["funding"])
    assert lane.topics == ("c0usdt@markPrice@1s",)
    assert lane.silence_s == {"data": 10.0, "marks": 10.0}
    assert lane.doubt_s is None


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
    assert linear.doubt_s is None
    assert spot.url == "wss://stream.bybit.com/v5/public/spot"
    assert spot.topics == ("kline.1.BTCUSDT", "tickers.BTCUSDT")
    assert spot.silence_s == {"frames": 12.0}
    assert spot.doubt_s == 10.0


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


pairs = st.lists(names, max_size=450, unique=True).map(
    lambda ids: [market(f"{id}/USDT:USDT") for id in ids]
)


def by_id(lanes: list[Lane]) -> dict[str, Lane]:
    lanes_by_id = {lane.id: lane for lane in lanes}
    assert len(lanes_by_id) == len(lanes)
    return lanes_by_id


def assert_stable(held: list[Lane], planned: list[Lane], fresh: list[Lane]) -> None:
    """Wanted topics are there once, those that stay are where they were, the rest is untouched."""
    wanted = {(lane.group, topic) for lane in fresh for topic in lane.topics}
    topics = [(lane.group, topic) for lane in planned for topic in lane.topics]
    assert len(topics) == len(set(topics))
    assert set(topics) == wanted
    assert all(lane.topics for lane in planned)
    before = by_id(held)
    for lane in by_id(planned).values():
        old = before.pop(lane.id, None)
        if old is not None:
            staying = {topic for topic in old.topics if (old.group, topic) in wanted}
            assert staying <= set(lane.topics)
            assert (lane is old) == (set(lane.topics) == set(old.topics))
    for gone in before.values():
        assert not any((gone.group, topic) in wanted for topic in gone.topics)


@given(pairs, pairs, pairs, st.sampled_from([ALL, ("candles",)]))
def test_a_changed_plan_of_binance_moves_nothing_and_keeps_to_the_limits(
    first: list[Market], second: list[Market], third: list[Market], channels: tuple[str, ...]
) -> None:
    held = binance.plan_lanes(first, channels)
    for markets in ([*first, *second], second, [*third, *second[: len(second) // 2]]):
        unique = list({one.id.lower(): one for one in markets}.values())
        planned = binance.plan_lanes(unique, channels, held=held)
        fresh = binance.plan_lanes(unique, channels)
        for lane in planned:
            assert len(url_of(lane)) <= 7_500
            assert lane.streams <= 200
        array = any("!markPrice@arr@1s" in lane.topics for lane in planned)
        if array != any("!markPrice@arr@1s" in lane.topics for lane in fresh):
            # The choice that was made is kept: then it is at least no worse in connections.
            assert array or len(planned) <= len(held)
            assert_all_pairs(unique, channels, planned)
        elif any("!markPrice@arr@1s" in lane.topics for lane in held) == array:
            assert_stable(held, planned, fresh)
        held = planned


def assert_all_pairs(markets: list[Market], channels: tuple[str, ...], planned: list[Lane]) -> None:
    topics = [topic for lane in planned for topic in lane.topics]
    assert len(topics) == len(set(topics))
    for one in markets:
        assert f"{one.id.lower()}@kline_1m" in topics
        if channels == ALL:
            assert {f"{one.id.lower()}@markPrice@1s", "!markPrice@arr@1s"} & set(topics)


bybit_pairs = st.lists(
    st.tuples(st.integers(0, 900), st.sampled_from(["/USDT:USDT", "/USDT"])),
    max_size=300,
    unique=True,
).map(lambda some: [market(f"C{n}{rest}", exchange="BYBIT") for n, rest in some])


@given(bybit_pairs, bybit_pairs)
def test_a_changed_plan_of_bybit_moves_nothing_and_keeps_to_the_limits(
    first: list[Market], second: list[Market]
) -> None:
    held = bybit.plan_lanes(first, ALL)
    planned = bybit.plan_lanes(second, ALL, held=held)
    assert all(sum(map(len, lane.topics)) <= 21_000 for lane in planned)
    assert all(lane.streams <= 400 for lane in planned)
    assert_stable(held, planned, bybit.plan_lanes(second, ALL))


def test_the_same_pairs_are_the_very_same_lanes() -> None:
    held = binance.plan_lanes(perpetuals(450), ALL)
    planned = binance.plan_lanes(perpetuals(450)[::-1], ALL, held=held)
    assert all(lane is old for lane, old in zip(planned, held, strict=True))


def test_a_new_pair_goes_where_room_is_and_only_its_connection_changes() -> None:
    held = binance.plan_lanes(perpetuals(450), ["candles"])
    first, second, third = binance.plan_lanes(perpetuals(451), ["candles"], held=held)
    assert first is held[0]
    assert second is held[1]
    assert third.id == held[2].id
    assert third.topics == (*held[2].topics, "c450usdt@kline_1m")


def test_a_new_pair_takes_the_place_of_one_that_is_gone() -> None:
    held = binance.plan_lanes(perpetuals(450), ["candles"])
    markets = [*perpetuals(250)[1:], *perpetuals(451)[250:]]
    first, second, third = binance.plan_lanes(markets, ["candles"], held=held)
    assert "c450usdt@kline_1m" in first.topics
    assert second is held[1]
    assert third is held[2]


def test_a_lane_with_nothing_left_is_gone_and_its_id_is_free_again() -> None:
    held = binance.plan_lanes(perpetuals(450), ["candles"])
    rest = perpetuals(450)[200:]
    planned = binance.plan_lanes(rest, ["candles"], held=held)
    assert planned == held[1:]
    more = binance.plan_lanes([*rest, *perpetuals(700)[450:]], ["candles"], held=planned)
    assert [lane.id for lane in more] == ["market-2", "market-3", "market-1"]


def test_marks_by_pair_stay_so_while_they_fit_and_then_come_all_together() -> None:
    held = binance.plan_lanes(perpetuals(98), ALL)
    (lane,) = held = binance.plan_lanes(perpetuals(100), ALL, held=held)
    assert lane.streams == 200
    (lane,) = held = binance.plan_lanes(perpetuals(101), ALL, held=held)
    assert lane.streams == 102
    assert "!markPrice@arr@1s" in lane.topics
    (lane,) = binance.plan_lanes(perpetuals(20), ALL, held=held)
    assert "!markPrice@arr@1s" in lane.topics


def test_what_gains_changes_before_what_only_loses() -> None:
    def lane(id: str, *topics: str) -> Lane:
        return Lane(id, "ws://x", topics, {})

    held = [lane("x-1", "a", "marks.a"), lane("x-2", "b", "marks.b"), lane("x-3", "c")]
    planned = [
        lane("x-1", "a"),
        lane("x-2", "b", "all"),
        lane("x-3", "c"),
        lane("x-4", "d"),
    ]
    order = [lane.id for lane in change_order(held, planned)]
    assert order == ["x-4", "x-2", "x-1"]


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


def test_a_peer_that_answers_nothing_is_missed_before_its_data() -> None:
    judged = liveness(data=90.0, frames=12.0)
    judged.data("candles", 1_000_000)
    for now_ms in range(1_000_000, 1_030_000, 5_000):
        judged.frame(now_ms)
        assert not judged.silent(now_ms)
    assert judged.overdue(1_037_000) is None
    assert judged.overdue(1_037_001) == "no frames for 12 s"
    assert judged.silent(1_037_001)


def test_one_kind_that_stays_away_is_no_silence() -> None:
    judged = liveness(data=10.0, marks=10.0, candles=90.0)
    for now_ms in range(1_000_000, 1_091_000, 1_000):
        judged.data("marks", now_ms)
    assert judged.overdue(1_090_500) == "no candles for 90 s"
    assert not judged.silent(1_090_500)
    assert judged.silent(1_101_000)


def test_a_connection_is_complete_with_every_kind_that_it_must_bring() -> None:
    judged = liveness(data=10.0, marks=10.0, candles=90.0)
    judged.data("marks", 1_001_000)
    assert not judged.complete
    judged.data("candles", 1_002_000)
    assert judged.complete


def test_a_new_connection_need_not_bring_what_the_old_one_does_not_bring_either() -> None:
    lane = Lane("x-1", "ws://x", (), {"data": 10.0, "marks": 10.0, "candles": 90.0})
    old, new = Liveness(lane, 0), Liveness(lane, 60_000)
    old.data("candles", 50_000)
    old.data("marks", 61_000)
    assert not new.as_good_as(old)
    new.data("marks", 62_000)
    assert new.as_good_as(old)
    old.data("candles", 63_000)
    assert not new.as_good_as(old)


def doubted_s(data_s: Iterable[int], *, until_s: int, greeted: bool = True) -> list[int]:
    """When a lane is doubted whose markets have data at these seconds.

    A doubt is settled two seconds later by another connection: one that is greeted with data takes
    the place of the first, otherwise the first is kept.
    """
    lane = Lane("x-1", "ws://x", (), {}, doubt_s=10.0)
    doubt, liveness, there = Doubt(), Liveness(lane, 0), set(data_s)
    liveness.data("candles", 0)
    found: list[int] = []
    for second in range(until_s):
        if second in there:
            liveness.data("candles", second * 1_000)
        if found and second == found[-1] + 2:
            if greeted:
                liveness = Liveness(lane, second * 1_000)
                liveness.data("candles", second * 1_000)
            doubt.settled(second * 1_000)
        being_settled = found and second <= found[-1] + 2
        if doubt.about(liveness, second * 1_000) is not None and not being_settled:
            found.append(second)
    return found


@pytest.mark.parametrize("greeted", [True, False])
def test_markets_that_stand_still_are_looked_into_ever_more_rarely(greeted: bool) -> None:
    assert doubted_s([], until_s=500, greeted=greeted) == [11, 34, 77, 160, 243, 326, 409, 492]


@pytest.mark.parametrize("every_s", [12, 25, 45, 60])
def test_markets_that_pause_cost_three_connections_in_ten_minutes(every_s: int) -> None:
    doubts = doubted_s(range(0, 3_600, every_s), until_s=3_600)
    assert len(doubts) <= 3 * 6
    assert doubts[0] == 11
    early = [second for second in doubts if second < 600]
    assert 1 <= len(early) <= 3


@given(st.sets(st.integers(0, 3_600), max_size=400), st.booleans())
def test_whatever_is_traded_doubts_stay_within_the_handshakes_of_a_minute(
    data_s: set[int], greeted: bool
) -> None:
    doubts = doubted_s(data_s, until_s=3_600, greeted=greeted)
    for first, fifth in zip(doubts, doubts[4:], strict=False):
        assert fifth - first > 60


def test_a_connection_that_dies_again_is_doubted_as_soon_once_data_has_flowed() -> None:
    flowing = [*range(100), *range(113, 213)]
    assert doubted_s(flowing, until_s=224) == [110, 223]


def test_markets_that_have_begun_to_pause_are_not_taken_for_steady() -> None:
    pausing = [*range(60), *range(73, 300, 8), *range(315, 600, 8)]
    assert doubted_s(pausing, until_s=600) == [70]


def test_before_its_first_data_a_connection_is_not_doubted() -> None:
    lane = Lane("x-1", "ws://x", (), {}, doubt_s=10.0)
    assert Doubt().about(Liveness(lane, 0), 14_000) is None


def test_where_marks_tell_nothing_is_doubted() -> None:
    judged = liveness(data=10.0, marks=10.0)
    judged.data("marks", 1_000_000)
    assert Doubt().about(judged, 1_100_000) is None
