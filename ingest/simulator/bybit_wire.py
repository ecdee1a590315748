"""What Bybit v5 puts on the wire for `linear` and `spot`: dictionaries of the market's numbers.

Shapes as of November 2026: bybit-exchange.github.io/docs/v5.
"""

from __future__ import annotations

from datetime import UTC, datetime

from ingest.simulator.bars import Bar
from ingest.simulator.market import Day, Funding, Mark, MarkBar
from ingest.simulator.universe import Contract, fixed

Json = dict[str, object]

_MARK_DIGITS = 8


def plain(text: str) -> str:
    """Without trailing zeros, as klines are printed.

    >>> plain("63967.70"), plain("16677.00"), plain("100")
    ('63967.7', '16677', '100')
    """
    return text.rstrip("0").rstrip(".") if "." in text else text


def kline_item(contract: Contract, bar: Bar, confirm: bool, time_ms: int) -> Json:
    """An element of `data` in `kline.<interval>.<symbol>`."""
    return {
        "start": bar.open_ms,
        "end": bar.close_ms,
        "interval": str(bar.interval_ms // 60_000),
        "open": plain(contract.price(bar.open)),
        "close": plain(contract.price(bar.close)),
        "high": plain(contract.price(bar.high)),
        "low": plain(contract.price(bar.low)),
        "volume": contract.quantity(bar.volume),
        "turnover": contract.amount(bar.quote),
        "confirm": confirm,
        "timestamp": time_ms,
    }


def kline_row(contract: Contract, bar: Bar) -> list[str]:
    """A row of `GET /v5/market/kline`."""
    prices = (bar.open, bar.high, bar.low, bar.close)
    return [
        str(bar.open_ms),
        *(plain(contract.price(units)) for units in prices),
        contract.quantity(bar.volume),
        contract.amount(bar.quote),
    ]


def mark_kline_row(contract: Contract, bar: MarkBar) -> list[str]:
    """A row of `GET /v5/market/mark-price-kline`."""
    open_ms, *prices = bar
    return [str(open_ms), *(plain(_mark_price(contract, units)) for units in prices)]


def spot_ticker(contract: Contract, day: Day, last: int) -> Json:
    """`data` of `tickers.<symbol>` on spot: no bid, no ask."""
    return {
        **_day_fields(contract, day, last),
        "usdIndexPrice": contract.price(last) if contract.quote == "USDT" else "",
    }


def linear_ticker(
    contract: Contract, day: Day, last: int, mark: Mark, funding: Funding | None
) -> Json:
    """All fields of `tickers.<symbol>` on linear. Dated contracts have empty funding."""
    open_interest = day.volume // 3 + 10**contract.qty_digits
    size = contract.quantity(10**contract.qty_digits * (3 + last % 7))
    fields: Json = {
        **_day_fields(contract, day, last),
        "tickDirection": "PlusTick" if last > day.hour_open else "MinusTick",
        "prevPrice1h": contract.price(day.hour_open),
        "markPrice": _mark_price(contract, mark.price),
        "indexPrice": _mark_price(contract, mark.index_price),
        "openInterest": contract.quantity(open_interest),
        "openInterestValue": contract.amount(open_interest * last),
        "nextFundingTime": str(funding.next_ms) if funding else "",
        "fundingRate": plain(fixed(funding.rate, 8)) if funding else "",
        "bid1Price": contract.price(last),
        "bid1Size": size,
        "ask1Price": contract.price(last + contract.tick),
        "ask1Size": size,
    }
    return fields | (_perpetual_fields(funding) if funding else _dated_fields(contract, mark))


def _perpetual_fields(funding: Funding) -> Json:
    return {
        "fundingIntervalHour": str(funding.interval_hours),
        "fundingCap": "0.005",
        "preOpenPrice": "",
        "preQty": "",
        "curPreListingPhase": "",
    }


def _dated_fields(contract: Contract, mark: Mark) -> Json:
    delivery = datetime.fromtimestamp((contract.expiry_ms or 0) / 1000, UTC)
    return {
        "deliveryTime": f"{delivery:%Y-%m-%dT%H:%M:%SZ}",
        "basisRate": f"{mark.price / mark.index_price - 1:.8f}",
        "deliveryFeeRate": "0",
        "predictedDeliveryPrice": "0.00",
        "basis": _mark_price(contract, mark.price - mark.index_price),
        "basisRateYear": f"{(mark.price / mark.index_price - 1) * 4:.8f}",
    }


def _day_fields(contract: Contract, day: Day, last: int) -> Json:
    return {
        "symbol": contract.id,
        "lastPrice": contract.price(last),
        "highPrice24h": contract.price(max(day.high, last)),
        "lowPrice24h": contract.price(min(day.low, last)),
        "prevPrice24h": contract.price(day.open),
        "volume24h": contract.quantity(day.volume),
        "turnover24h": contract.amount(day.quote),
        "price24hPcnt": f"{last / day.open - 1:.6f}",
    }


def ticker_row(contract: Contract, stream_fields: Json) -> Json:
    """A row of `GET /v5/market/tickers`, out of the stream's fields."""
    row = {name: value for name, value in stream_fields.items() if name != "tickDirection"}
    if contract.kind == "spot":
        last = row["lastPrice"]
        return row | {"bid1Price": last, "bid1Size": "1", "ask1Price": last, "ask1Size": "1"}
    if contract.kind == "future":
        delivery = str(contract.expiry_ms)
        return row | {"deliveryTime": delivery, "fundingIntervalHour": "", "fundingCap": ""}
    return row | {
        "predictedDeliveryPrice": "",
        "basisRate": "",
        "deliveryFeeRate": "",
        "deliveryTime": "0",
        "basis": "",
        "basisRateYear": "",
    }


def instrument_row(contract: Contract, number: int) -> Json:
    """A row of `GET /v5/market/instruments-info`. The funding interval is in minutes here."""
    tick = fixed(contract.tick, contract.price_digits)
    step = fixed(1, contract.qty_digits)
    row: Json = {
        "symbol": contract.id,
        "symbolId": number,
        "status": "Trading" if contract.active else "Delivering",
        "baseCoin": contract.base,
        "quoteCoin": contract.quote,
        "symbolType": "",
    }
    if contract.kind == "spot":
        return row | {
            "innovation": "0",
            "marginTrading": "utaOnly",
            "lotSizeFilter": {"basePrecision": step, "quotePrecision": "0.00000001",
                              "minOrderQty": step, "maxOrderQty": "1000000", "minOrderAmt": "5"},
            "priceFilter": {"tickSize": tick},
        }  # fmt: skip
    return row | {
        "contractType": contract.contract_type,
        "launchTime": str(contract.listed_ms),
        "deliveryTime": str(contract.expiry_ms or 0),
        "deliveryFeeRate": "",
        "priceScale": str(contract.price_digits),
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
        "priceFilter": {"minPrice": tick, "maxPrice": "1999999.80", "tickSize": tick},
        "lotSizeFilter": {
            "maxOrderQty": "1000000", "minOrderQty": step, "qtyStep": step,
            "postOnlyMaxOrderQty": "1000000", "maxMktOrderQty": "500000", "minNotionalValue": "5",
        },
        "unifiedMarginTrade": True,
        "fundingInterval": (contract.interval_hours or 0) * 60,
        "settleCoin": contract.settle,
        "copyTrading": "both",
        "upperFundingRate": "0.00375",
        "lowerFundingRate": "-0.00375",
        "isPreListing": False,
        "preListingInfo": None,
        "riskParameters": {"priceLimitRatioX": "0.01", "priceLimitRatioY": "0.02"},
    }  # fmt: skip


def maintenance_row(now_ms: int) -> Json:
    """A row of `GET /v5/system/status`, of work that goes on."""
    return {
        "id": "4d95b2a0-587f-11f0-bcc9-56f28c94d6ea",
        "title": "System maintenance",
        "state": "ongoing",
        "begin": str(now_ms - now_ms % 60_000),
        "end": str(now_ms - now_ms % 60_000 + 3_600_000),
        "href": "",
        "serviceTypes": [1, 2, 3, 4, 5],
        "product": [1, 2],
        "uidSuffix": [],
        "maintainType": 1,
        "env": 1,
    }


def _mark_price(contract: Contract, units: int) -> str:
    """Cut to the contract's digits."""
    return contract.price(units // 10 ** (_MARK_DIGITS - contract.price_digits))
