"""Names come from the exchange's metadata; every trap of its ids is one test here.

The expected pairs are those that ccxt 4.5.90 makes of the same rows.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.errors import BadMessage, UnknownPair
from marketdata.pairs import Catalogue, binance_futures_markets, bybit_markets

NEVER_MS = 4_133_404_800_000
DEC_25_MS = 1_798_185_600_000
DEC_26_2025_MS = 1_766_736_000_000

Row = dict[str, object]


def binance_row(market_id: str, base: str, quote: str = "USDT", **changes: object) -> Row:
    return {
        "symbol": market_id,
        "pair": market_id,
        "contractType": "PERPETUAL",
        "deliveryDate": NEVER_MS,
        "onboardDate": 1_567_965_300_000,
        "status": "TRADING",
        "baseAsset": base,
        "quoteAsset": quote,
        "marginAsset": quote,
    } | changes


def linear_row(market_id: str, base: str, quote: str = "USDT", **changes: object) -> Row:
    return {
        "symbol": market_id,
        "contractType": "LinearPerpetual",
        "status": "Trading",
        "baseCoin": base,
        "quoteCoin": quote,
        "settleCoin": quote,
        "launchTime": "1585526400000",
        "deliveryTime": "0",
        "fundingInterval": 480,
    } | changes


def spot_row(market_id: str, base: str, quote: str = "USDT", **changes: object) -> Row:
    return {
        "symbol": market_id,
        "baseCoin": base,
        "quoteCoin": quote,
        "status": "Trading",
    } | changes


def binance(*rows: Row) -> Catalogue:
    return binance_futures_markets({"symbols": list(rows)})


@pytest.mark.parametrize(
    ("market_id", "base", "quote", "pair"),
    [
        ("BTCUSDT", "BTC", "USDT", "BTC/USDT:USDT"),
        ("BTCUSDC", "BTC", "USDC", "BTC/USDC:USDC"),
        ("ETHBTC", "ETH", "BTC", "ETH/BTC:BTC"),
        ("1000PEPEUSDT", "1000PEPE", "USDT", "1000PEPE/USDT:USDT"),
        ("1000000MOGUSDT", "1000000MOG", "USDT", "1000000MOG/USDT:USDT"),
        ("1MBABYDOGEUSDT", "1MBABYDOGE", "USDT", "1MBABYDOGE/USDT:USDT"),
        ("10000SATSUSDT", "10000SATS", "USDT", "10000SATS/USDT:USDT"),
        ("1000XUSDT", "1000X", "USDT", "1000X/USDT:USDT"),
        ("1000CATUSDT", "1000CAT", "USDT", "1000CAT/USDT:USDT"),
        ("1INCHUSDT", "1INCH", "USDT", "1INCH/USDT:USDT"),
        ("0GUSDT", "0G", "USDT", "0G/USDT:USDT"),
        ("4USDT", "4", "USDT", "4/USDT:USDT"),
        ("BUSDT", "B", "USDT", "B/USDT:USDT"),
        ("BUSDUSDT", "BUSD", "USDT", "BUSD/USDT:USDT"),
        ("USD1USDT", "USD1", "USDT", "USD1/USDT:USDT"),
        ("USDCUSDT", "USDC", "USDT", "USDC/USDT:USDT"),
        ("FDUSDUSDT", "FDUSD", "USDT", "FDUSD/USDT:USDT"),
        ("币安人生USDT", "币安人生", "USDT", "币安人生/USDT:USDT"),
        ("我踏马来了USDT", "我踏马来了", "USDT", "我踏马来了/USDT:USDT"),
        ("aBCUSDT", "aBC", "USDT", "ABC/USDT:USDT"),
    ],
)
def test_a_binance_perpetual_is_named_by_its_metadata_and_keeps_its_id(
    market_id: str, base: str, quote: str, pair: str
) -> None:
    market = binance(binance_row(market_id, base, quote)).find(pair)
    assert (market.id, market.kind, market.settle) == (market_id, "perpetual", quote)


def test_a_tradfi_perpetual_is_a_perpetual_and_not_a_spot_market() -> None:
    catalogue = binance(binance_row("XAUUSDT", "XAU", contractType="TRADIFI_PERPETUAL"))
    assert catalogue.find("XAU/USDT:USDT").kind == "perpetual"


def test_binance_quarters_are_dated_by_their_delivery() -> None:
    catalogue = binance(
        binance_row("BTCUSDT", "BTC"),
        binance_row(
            "BTCUSDT_261225",
            "BTC",
            pair="BTCUSDT",
            contractType="CURRENT_QUARTER",
            deliveryDate=DEC_25_MS,
        ),
    )
    quarter = catalogue.find("BTC/USDT:USDT-261225")
    assert (quarter.kind, quarter.id, quarter.expiry_ms) == ("future", "BTCUSDT_261225", DEC_25_MS)
    assert catalogue.find("BTC/USDT:USDT").id == "BTCUSDT"


def test_a_settling_contract_is_listed_but_not_active() -> None:
    row = binance_row("OMGUSDT", "OMG", status="SETTLING", deliveryDate=1_738_314_000_000)
    market = binance(row).find("OMG/USDT:USDT")
    assert (market.active, market.kind, market.expiry_ms) == (False, "perpetual", None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (binance_row("BTCUSDT", "BTC", contractType="MOON_PERPETUAL"), "'MOON_PERPETUAL'"),
        (binance_row("BTCSTUSDT", "BTCST", contractType=""), "contract type ''"),
        (binance_row("BTCUSDT", "BTC", contractType=None), "contract type None"),
        (binance_row("BTCUSD_PERP", "BTC", "USD", marginAsset="BTC"), "settled in BTC"),
        (
            binance_row(
                "BTCUSDT_261225",
                "BTC",
                pair="BTCUSDT",
                contractType="NEXT_QUARTER",
                deliveryDate=DEC_25_MS + 86_400_000,
            ),
            "expected BTCUSDT_261226",
        ),
        (binance_row("BTCUSDT_261225", "BTC", contractType="CURRENT_QUARTER", deliveryDate=0), "0"),
        (binance_row("USDT", ""), "baseAsset"),
    ],
)
def test_a_row_that_is_not_understood_is_set_aside_with_the_reason(row: Row, reason: str) -> None:
    catalogue = binance(row, binance_row("ETHUSDT", "ETH"))
    assert [market.id for market in catalogue.markets] == ["ETHUSDT"]
    (quarantined,) = catalogue.quarantined
    assert quarantined.id == row["symbol"]
    assert reason in quarantined.reason


def test_metadata_without_symbols_is_a_bad_message() -> None:
    with pytest.raises(BadMessage, match="symbols"):
        binance_futures_markets({"code": -1003, "msg": "Too many requests"})


@pytest.mark.parametrize("first_active", [True, False])
def test_of_two_rows_that_claim_one_name_the_traded_one_has_it(first_active: bool) -> None:
    rows = [
        binance_row("ABCUSDT", "ABC", status="TRADING" if first_active else "SETTLING"),
        binance_row("abcUSDT", "abc", status="SETTLING" if first_active else "TRADING"),
    ]
    catalogue = binance(*rows)
    assert catalogue.find("ABC/USDT:USDT").id == ("ABCUSDT" if first_active else "abcUSDT")
    assert len(catalogue.quarantined) == 1


def test_binance_intervals_are_unknown_until_told_and_then_8_hours_where_not_listed() -> None:
    catalogue = binance(
        binance_row("BTCUSDT", "BTC"),
        binance_row("ETHUSDT", "ETH"),
        binance_row(
            "BTCUSDT_261225",
            "BTC",
            pair="BTCUSDT",
            contractType="CURRENT_QUARTER",
            deliveryDate=DEC_25_MS,
        ),
    )
    assert {market.interval_hours for market in catalogue.markets} == {None}
    told = catalogue.with_intervals({"ETHUSDT": 4.0}, otherwise=8.0)
    assert {market.id: market.interval_hours for market in told.markets} == {
        "BTCUSDT": 8.0,
        "ETHUSDT": 4.0,
        "BTCUSDT_261225": None,
    }


def test_bybit_intervals_are_minutes_and_stay_where_nothing_newer_is_told() -> None:
    catalogue = bybit_markets(
        {
            "linear": [
                linear_row("BTCUSDT", "BTC"),
                linear_row("IOSTUSDT", "IOST", fundingInterval=60),
            ]
        }
    )
    assert catalogue.find("BTC/USDT:USDT").interval_hours == 8.0
    assert catalogue.find("IOST/USDT:USDT").interval_hours == 1.0
    told = catalogue.with_intervals({"IOSTUSDT": 4.0})
    assert told.find("BTC/USDT:USDT").interval_hours == 8.0
    assert told.find("IOST/USDT:USDT").interval_hours == 4.0


def test_bybit_spot_and_linear_share_an_id_and_stay_two_markets() -> None:
    catalogue = bybit_markets(
        {"linear": [linear_row("BTCUSDT", "BTC")], "spot": [spot_row("BTCUSDT", "BTC")]}
    )
    assert catalogue.by_id["perpetual", "BTCUSDT"].pair == "BTC/USDT:USDT"
    assert catalogue.by_id["spot", "BTCUSDT"].pair == "BTC/USDT"
    assert catalogue.find("BTC/USDT").settle is None


@pytest.mark.parametrize(
    ("row", "pair", "kind"),
    [
        (linear_row("BTCPERP", "BTC", "USDC"), "BTC/USDC:USDC", "perpetual"),
        (linear_row("SHIB1000USDT", "SHIB1000"), "SHIB1000/USDT:USDT", "perpetual"),
        (
            linear_row(
                "BTCUSDT-25DEC26",
                "BTC",
                contractType="LinearFutures",
                deliveryTime=str(DEC_25_MS),
                fundingInterval=0,
            ),
            "BTC/USDT:USDT-261225",
            "future",
        ),
        (
            linear_row(
                "BTC-26DEC25",
                "BTC",
                "USDC",
                contractType="LinearFutures",
                deliveryTime=str(DEC_26_2025_MS),
                fundingInterval=0,
            ),
            "BTC/USDC:USDC-251226",
            "future",
        ),
    ],
)
def test_a_bybit_contract_is_named_by_its_metadata(row: Row, pair: str, kind: str) -> None:
    market = bybit_markets({"linear": [row]}).find(pair)
    assert (market.id, market.kind) == (row["symbol"], kind)
    assert (market.interval_hours is None) == (kind == "future")


def test_a_bybit_perpetual_with_a_delisting_time_is_still_a_perpetual() -> None:
    row = linear_row("OLDUSDT", "OLD", deliveryTime=str(DEC_25_MS), status="Delivering")
    market = bybit_markets({"linear": [row]}).find("OLD/USDT:USDT")
    assert (market.kind, market.expiry_ms, market.active) == ("perpetual", None, False)


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ({"linear": [linear_row("BTCUSD", "BTC", "USD", contractType="InversePerpetual")]}, "Inve"),
        ({"linear": [spot_row("BTCUSDT", "BTC")]}, "contract type None"),
        ({"spot": [linear_row("BTCUSDT", "BTC")]}, "among the spot rows"),
        (
            {
                "linear": [
                    linear_row(
                        "BTCUSDT-26DEC26",
                        "BTC",
                        contractType="LinearFutures",
                        deliveryTime=str(DEC_25_MS),
                    )
                ]
            },
            "261225",
        ),
    ],
)
def test_a_bybit_row_that_is_not_understood_is_never_made_a_spot_market(
    pages: dict[str, list[Row]], reason: str
) -> None:
    catalogue = bybit_markets(pages)
    assert catalogue.markets == ()
    assert reason in catalogue.quarantined[0].reason


@pytest.mark.parametrize(
    "name", ["BTCUSDT", "btc-usdt", "BTC/USDT", "BTC-USDT-PERP", "BTC/USDT:USTD"]
)
def test_an_unknown_name_is_answered_with_what_it_may_have_meant(name: str) -> None:
    catalogue = binance(
        binance_row("BTCUSDT", "BTC"), binance_row("ETHUSDT", "ETH"), binance_row("BUSDT", "B")
    )
    with pytest.raises(UnknownPair, match=r"close to it: BTC/USDT:USDT") as caught:
        catalogue.find(name)
    assert caught.value.near[0] == "BTC/USDT:USDT"


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert binance(binance_row("BTCUSDT", "BTC")).near("ZZZZ") == ()


def test_an_id_that_two_kinds_share_suggests_both() -> None:
    catalogue = bybit_markets(
        {"linear": [linear_row("BTCUSDT", "BTC")], "spot": [spot_row("BTCUSDT", "BTC")]}
    )
    assert set(catalogue.near("BTCUSDT")) == {"BTC/USDT:USDT", "BTC/USDT"}


@settings(deadline=None)
@given(
    base=st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="\\"), min_size=1)
)
def test_an_id_is_kept_byte_for_byte(base: str) -> None:
    market_id = f"{base}USDT"
    (market,) = binance(binance_row(market_id, base)).markets
    assert market.id == market_id
    assert market.id.encode("utf-8", "surrogatepass") == market_id.encode("utf-8", "surrogatepass")
