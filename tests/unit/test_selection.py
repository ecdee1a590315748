"""What is wanted against what is listed: names in any form, the largest without flapping."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.selection import Names, last_rank, names_in, ranked, select, steady_top
from marketdata.errors import ConfigError
from marketdata.pairs import Catalogue, Market, MarketKind, bybit_markets


def market(pair: str, id: str, *, kind: MarketKind = "perpetual", active: bool = True) -> Market:
    base, _, rest = pair.partition("/")
    quote, _, settled = rest.partition(":")
    return Market(
        exchange="BINANCE_FUTURES", kind=kind, id=id, pair=pair, base=base, quote=quote,
        settle=settled.partition("-")[0] or None, expiry_ms=None, active=active, listed_ms=None,
        interval_hours=None,
    )  # fmt: skip


FUTURES = Catalogue(
    "BINANCE_FUTURES",
    [
        market("BTC/USDT:USDT", "BTCUSDT"),
        market("BTC/USDC:USDC", "BTCUSDC"),
        market("BTC/USDT:USDT-261225", "BTCUSDT_261225", kind="future"),
        market("B/USDT:USDT", "BUSDT"),
        market("币安人生/USDT:USDT", "币安人生USDT"),
        market("ETH/USDC:USDC", "ETHUSDC"),
        market("OMG/USDT:USDT", "OMGUSDT", active=False),
    ],
)
BOTH = bybit_markets(
    {
        "linear": [
            {
                "symbol": "BTCUSDT", "baseCoin": "BTC", "quoteCoin": "USDT", "settleCoin": "USDT",
                "status": "Trading", "contractType": "LinearPerpetual", "fundingInterval": 480,
            },
        ],
        "spot": [
            {"symbol": "BTCUSDT", "baseCoin": "BTC", "quoteCoin": "USDT", "status": "Trading"},
            {"symbol": "ETHUSDT", "baseCoin": "ETH", "quoteCoin": "USDT", "status": "Trading"},
        ],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("catalogue", "name", "pair"),
    [
        (FUTURES, "BTC/USDT:USDT", "BTC/USDT:USDT"),
        (FUTURES, "BTCUSDT", "BTC/USDT:USDT"),
        (FUTURES, "BTC/USDT", "BTC/USDT:USDT"),
        (FUTURES, "btc-usdt", "BTC/USDT:USDT"),
        (FUTURES, "BTC", "BTC/USDT:USDT"),
        (FUTURES, "BTCUSDC", "BTC/USDC:USDC"),
        (FUTURES, "BTCUSDT_261225", "BTC/USDT:USDT-261225"),
        (FUTURES, "BUSDT", "B/USDT:USDT"),
        (FUTURES, "B", "B/USDT:USDT"),
        (FUTURES, "币安人生", "币安人生/USDT:USDT"),
        (FUTURES, "OMGUSDT", "OMG/USDT:USDT"),
        (FUTURES, "OMG", None),
        (FUTURES, "ETH", None),
        (FUTURES, "USDT", None),
        (FUTURES, "PEPEUSDT", None),
        (BOTH, "BTC/USDT", "BTC/USDT"),
        (BOTH, "BTCUSDT", "BTC/USDT:USDT"),
        (BOTH, "btcusdt", "BTC/USDT:USDT"),
        (BOTH, "ETHUSDT", "ETH/USDT"),
        (BOTH, "eth", "ETH/USDT"),
    ],
)
def test_a_name_in_any_form_means_one_pair_or_none(
    catalogue: Catalogue, name: str, pair: str | None
) -> None:
    assert Names(catalogue).pair(name) == pair


def test_a_form_that_two_markets_share_means_neither() -> None:
    twins = [market("AB/C:C", "x1"), market("A/BC:BC", "x2")]
    assert Names(Catalogue("BINANCE_FUTURES", twins)).pair("abc") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_a_list_of_texts(value: object) -> None:
    assert all(isinstance(name, str) for name in names_in(value))


def test_what_is_not_listed_or_not_traded_is_left_out_with_the_reason() -> None:
    found = select("BINANCE_FUTURES", ["BTC/USDT:USDT", "OMG/USDT:USDT", "BTC/USD:USD"], FUTURES)
    assert list(found.markets) == ["BTC/USDT:USDT"]
    assert "doesn't trade it now" in found.left_out[0]
    assert "BTC/USDT:USDT" in found.left_out[1], "what comes close is named"
    with pytest.raises(ConfigError, match="none of which"):
        select("BINANCE_FUTURES", ["OMG/USDT:USDT"], FUTURES)


def test_the_largest_are_the_traded_perpetuals_of_the_quote() -> None:
    volumes = {"BUSDT": 5.0, "BTCUSDT": 9.0, "OMGUSDT": 99.0, "BTCUSDC": 70.0, "BTCUSDT_261225": 50}
    assert ranked(volumes, FUTURES, "USDT") == [
        "BTC/USDT:USDT", "B/USDT:USDT", "币安人生/USDT:USDT",
    ]  # fmt: skip


# The largest, steadily


ALL = [f"P{number:03}" for number in range(60)]


@given(
    top=st.integers(1, 70),
    looks=st.lists(st.permutations(ALL).flatmap(lambda p: st.integers(0, 60).map(lambda n: p[:n]))),
)
def test_there_are_always_as_many_as_wanted_or_as_are_traded(
    top: int, looks: list[list[str]]
) -> None:
    chosen: list[str] = []
    for by_volume in looks:
        before, chosen = chosen, steady_top(by_volume, chosen, top)
        assert len(chosen) == len(set(chosen)) == min(top, len(by_volume))
        for pair in set(before) - set(chosen):
            assert pair not in by_volume[: last_rank(top)], "left only from below the edge"
        for pair in set(chosen) - set(before):
            assert pair in by_volume[:top], "entered only from within"
        assert set(chosen) <= set(by_volume[: last_rank(top)])
        stayed = [pair for pair in before if pair in chosen]
        assert chosen[: len(stayed)] == stayed


@given(top=st.integers(1, 50), data=st.data())
def test_noise_around_the_edge_changes_nothing(top: int, data: st.DataObject) -> None:
    """Each pair's rank wanders by as much as there is room below the edge, look after look."""
    room = last_rank(top) - top
    chosen = steady_top(ALL, [], top)
    noise = st.lists(st.floats(0, room, exclude_max=True), min_size=len(ALL), max_size=len(ALL))
    for moves in data.draw(st.lists(noise, min_size=1, max_size=8)):
        now = shaken(ALL, moves)
        assert steady_top(now, chosen, top) == chosen


def shaken(pairs: Sequence[str], moves: Sequence[float]) -> list[str]:
    """The pairs by their rank plus a noise: none sinks by more ranks than the largest noise."""
    places = {pair: rank + move for rank, (pair, move) in enumerate(zip(pairs, moves, strict=True))}
    return sorted(pairs, key=places.__getitem__)


@given(volumes=st.lists(st.permutations(ALL[:30]), min_size=2, max_size=6), top=st.integers(1, 25))
def test_a_second_look_at_the_same_volumes_changes_nothing(
    volumes: list[list[str]], top: int
) -> None:
    chosen: list[str] = []
    for by_volume in volumes:
        chosen = steady_top(by_volume, chosen, top)
        assert steady_top(by_volume, chosen, top) == chosen


def test_a_pair_that_is_not_traded_any_more_makes_room_at_once() -> None:
    chosen = steady_top(ALL, [], 10)
    assert steady_top(ALL[1:], chosen, 10) == [*ALL[1:10], ALL[10]]
