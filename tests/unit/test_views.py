"""Views: which pairs they are of, what they show, and what is too old to be shown."""

from __future__ import annotations

import pytest

from ingest.sinks.views import PRESETS, View, show
from marketdata.fields import VIEWS
from marketdata.pairs import Market, MarketKind
from marketdata.schema import Last

NOW = 1_760_000_000_000


def market(
    exchange: str, kind: MarketKind, id: str, quote: str = "USDT", base: str = "BTC"
) -> Market:
    pair = f"{base}/{quote}" if kind == "spot" else f"{base}/{quote}:{quote}"
    return Market(exchange, kind, id, pair, base, quote, None, None, True, None, None)


def last(of: Market, **values: float | int | None) -> Last:
    return Last(of.exchange, of.pair)._replace(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("preset", "of", "keys"),
    [
        (
            "quantum",
            market("BINANCE_FUTURES", "perpetual", "BTCUSDT"),
            ["quantum:ticker:BTCUSDT", "quantum:market:BTCUSDT"],
        ),
        ("quantum", market("BYBIT", "perpetual", "BTCUSDT"), [None, None]),
        ("bybit_spot", market("BYBIT", "spot", "BTCUSDT"), ["bybit_spot:BTC"]),
        ("bybit_spot", market("BYBIT", "perpetual", "BTCUSDT"), [None]),
        ("bybit_spot", market("BYBIT", "spot", "BTCUSDC", quote="USDC"), [None]),
        (
            "coindcx_futures",
            market("COINDCX_FUTURES", "perpetual", "B-BTC_USDT"),
            ["coindcx_futures:BTC"],
        ),
    ],
)
def test_a_key_is_never_shared_by_two_markets(
    preset: str, of: Market, keys: list[str | None]
) -> None:
    assert [view.key_for(of) for view in PRESETS[preset]] == keys


def test_coindcx_futures_shows_price_and_funding_each_with_its_own_time() -> None:
    of = market("COINDCX_FUTURES", "perpetual", "B-BTC_USDT")
    values = last(
        of,
        price=62_000.5,
        price_event_ms=NOW,
        funding_rate=1e-4,
        predicted_rate=2e-4,
        funding_event_ms=NOW - 60_000,
    )
    (view,) = PRESETS["coindcx_futures"]
    shown = show(view, of, values)
    assert shown is not None
    assert shown.event_ms == NOW
    assert shown.fields == {
        "ltp": "62000.5",
        "timestamp": str(NOW),
        "original_symbol": "B-BTC_USDT",
        "current_funding_rate": "0.0001",
        "estimated_funding_rate": "0.0002",
        "funding_timestamp": str(NOW - 60_000),
    }


def test_what_another_channel_said_too_long_ago_is_left_out() -> None:
    of = market("BINANCE_FUTURES", "perpetual", "BTCUSDT")
    ticker, by_mark = PRESETS["quantum"]
    values = last(of, price=1.0, price_event_ms=NOW, mark_price=2.0, mark_event_ms=NOW - 10_001)
    shown = show(ticker, of, values)
    assert shown is not None
    assert shown.fields == {"symbol": "BTCUSDT", "price": "1.0", "timestamp": str(NOW)}
    shown = show(by_mark, of, values)
    assert shown is not None
    assert shown.fields["price"] == "1.0"


def test_a_channel_that_has_said_nothing_shows_nothing() -> None:
    of = market("BINANCE_FUTURES", "perpetual", "BTCUSDT")
    ticker, _ = PRESETS["quantum"]
    assert show(ticker, of, last(of, mark_price=2.0, mark_event_ms=NOW)) is None


def test_where_last_prices_are_not_collected_the_forming_candle_has_the_price() -> None:
    of = market("BINANCE_FUTURES", "perpetual", "BTCUSDT")
    ticker, _ = PRESETS["quantum"]
    forming = last(of, close=5.0, candle_event_ms=NOW)
    shown = show(ticker, of, forming)
    assert shown is not None
    assert shown.fields["price"] == "5.0"
    both = show(ticker, of, forming._replace(price=4.0, price_event_ms=NOW - 1_000))
    assert both is not None
    assert (both.fields["price"], both.event_ms) == ("4.0", NOW - 1_000)


def test_every_preset_that_the_configuration_knows_is_there() -> None:
    assert set(PRESETS) == set(VIEWS)


def test_a_key_with_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="names pair; valid: exchange, symbol, id, base, quote"):
        View("mine:{pair}", "mark_price", {}, 1_000)


@pytest.mark.parametrize("template", ["{nothing}", "{price.real}", "{0}", "{}"])
def test_a_field_with_an_unknown_name_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="valid: exchange, symbol"):
        View("mine:{id}", "mark_price", {"field": template}, 1_000)
