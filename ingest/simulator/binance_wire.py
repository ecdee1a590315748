"""What Binance USD-M futures puts on the wire: JSON of the market's numbers, nothing else.

Shapes as of November 2026: developers.binance.com, derivatives, USD-M futures.
"""

from __future__ import annotations

from ingest.simulator.bars import Bar, Trade
from ingest.simulator.market import Day, Funding, Mark, MarkBar
from ingest.simulator.universe import NEVER_MS, Contract, fixed

Json = dict[str, object]

_PRICE_DIGITS = 8
"""Mark and index prices, and rates."""


def eight(units: int) -> str:
    """A number that Binance prints with eight digits."""
    return fixed(units, _PRICE_DIGITS)


def kline_event(contract: Contract, interval: str, bar: Bar, event_ms: int, closed: bool) -> bytes:
    """`<symbol>@kline_<interval>`."""
    first_id = bar.open_ms // 60_000 * 1000
    return (
        f'{{"e":"kline","E":{event_ms},"s":"{contract.id}","k":{{"t":{bar.open_ms},'
        f'"T":{bar.close_ms},"s":"{contract.id}","i":"{interval}","f":{first_id},'
        f'"L":{first_id + bar.trades - 1},"o":"{contract.price(bar.open)}",'
        f'"c":"{contract.price(bar.close)}","h":"{contract.price(bar.high)}",'
        f'"l":"{contract.price(bar.low)}","v":"{contract.quantity(bar.volume)}","n":{bar.trades},'
        f'"x":{"true" if closed else "false"},"q":"{contract.amount(bar.quote)}",'
        f'"V":"{contract.quantity(bar.taker_volume)}","Q":"{contract.amount(bar.taker_quote)}",'
        f'"B":"0"}}}}'
    ).encode()


def mark_event(contract: Contract, mark: Mark, funding: Funding | None, event_ms: int) -> bytes:
    """`<symbol>@markPrice`. Without funding (dated, settling) the rate is zero and so is `T`."""
    rate, next_ms = (0, 0) if funding is None else (funding.rate, funding.next_ms)
    price, index = eight(mark.price), eight(mark.index_price)
    return (
        f'{{"e":"markPriceUpdate","E":{event_ms},"s":"{contract.id}","p":"{price}","ap":"{price}",'
        f'"P":"{index}","i":"{index}","r":"{eight(rate)}","T":{next_ms},'
        f'"st":{2 if contract.coin_margined else 1}}}'
    ).encode()


def trade_event(contract: Contract, trade: Trade, event_ms: int) -> bytes:
    """`<symbol>@aggTrade`."""
    quantity = contract.quantity(trade.quantity)
    return (
        f'{{"e":"aggTrade","E":{event_ms},"s":"{contract.id}","a":{trade.id},'
        f'"p":"{contract.price(trade.price)}","q":"{quantity}","nq":"{quantity}",'
        f'"f":{trade.id},"l":{trade.id},"T":{trade.time_ms},'
        f'"m":{"false" if trade.buyer else "true"}}}'
    ).encode()


def book_event(contract: Contract, price: int, event_ms: int) -> bytes:
    """`<symbol>@bookTicker`: one tick around the last price."""
    size = contract.quantity(10**contract.qty_digits * 3)
    return (
        f'{{"e":"bookTicker","u":{event_ms},"s":"{contract.id}",'
        f'"b":"{contract.price(price)}","B":"{size}",'
        f'"a":"{contract.price(price + contract.tick)}","A":"{size}",'
        f'"T":{event_ms},"E":{event_ms}}}'
    ).encode()


def mini_ticker(contract: Contract, day: Day, last: int, event_ms: int) -> Json:
    """`<symbol>@miniTicker`."""
    return {
        "e": "24hrMiniTicker", "E": event_ms, "s": contract.id,
        "c": contract.price(last), "o": contract.price(day.open),
        "h": contract.price(max(day.high, last)), "l": contract.price(min(day.low, last)),
        "v": contract.quantity(day.volume), "q": contract.amount(day.quote),
    }  # fmt: skip


def ticker(contract: Contract, day: Day, last: int, event_ms: int) -> Json:
    """`<symbol>@ticker`."""
    return {
        **mini_ticker(contract, day, last, event_ms),
        "e": "24hrTicker",
        "p": contract.price(last - day.open), "P": _change_percent(day, last),
        "w": _average(contract, day, last), "Q": contract.quantity(1),
        "O": event_ms - 86_400_000, "C": event_ms,
        "F": event_ms - 86_400_000, "L": event_ms, "n": day.trades,
    }  # fmt: skip


def ticker_row(contract: Contract, day: Day, last: int, now_ms: int) -> Json:
    """A row of `GET /fapi/v1/ticker/24hr`."""
    return {
        "symbol": contract.id, "priceChange": contract.price(last - day.open),
        "priceChangePercent": _change_percent(day, last),
        "weightedAvgPrice": _average(contract, day, last),
        "lastPrice": contract.price(last), "lastQty": contract.quantity(1),
        "openPrice": contract.price(day.open), "highPrice": contract.price(max(day.high, last)),
        "lowPrice": contract.price(min(day.low, last)), "volume": contract.quantity(day.volume),
        "quoteVolume": contract.amount(day.quote), "openTime": now_ms - 86_400_000,
        "closeTime": now_ms, "firstId": now_ms - 86_400_000, "lastId": now_ms, "count": day.trades,
    }  # fmt: skip


def kline_row(contract: Contract, bar: Bar) -> list[object]:
    """A row of `GET /fapi/v1/klines`."""
    price = contract.price
    return [
        bar.open_ms, price(bar.open), price(bar.high), price(bar.low), price(bar.close),
        contract.quantity(bar.volume), bar.close_ms, contract.amount(bar.quote), bar.trades,
        contract.quantity(bar.taker_volume), contract.amount(bar.taker_quote), "0",
    ]  # fmt: skip


def mark_kline_row(bar: MarkBar, interval_ms: int) -> list[object]:
    """A row of `GET /fapi/v1/markPriceKlines`: the volume columns say nothing."""
    open_ms, *prices = bar
    return [
        open_ms, *map(eight, prices), "0", open_ms + interval_ms - 1, "0", interval_ms // 1000,
        "0", "0", "0",
    ]  # fmt: skip


def premium_row(contract: Contract, mark: Mark, funding: Funding | None, time_ms: int) -> Json:
    """A row of `GET /fapi/v1/premiumIndex`."""
    return {
        "symbol": contract.id,
        "markPrice": eight(mark.price),
        "indexPrice": eight(mark.index_price),
        "estimatedSettlePrice": eight(mark.index_price),
        "lastFundingRate": eight(funding.rate if funding else 0),
        "interestRate": eight(0 if contract.tradfi or funding is None else 10_000),
        "nextFundingTime": funding.next_ms if funding else 0,
        "time": time_ms,
    }


def funding_info_row(contract: Contract) -> Json:
    """A row of `GET /fapi/v1/fundingInfo`."""
    adjusted = contract.interval_hours != 8
    return {
        "symbol": contract.id,
        "adjustedFundingRateCap": "0.02000000" if adjusted else "0.00300",
        "adjustedFundingRateFloor": "-0.02000000" if adjusted else "-0.00300",
        "fundingIntervalHours": contract.interval_hours,
        "disclaimer": not adjusted,
        "updateTime": contract.listed_ms if adjusted else None,
    }


def symbol_row(contract: Contract) -> Json:
    """A row of `GET /fapi/v1/exchangeInfo`."""
    tick = fixed(contract.tick, contract.price_digits)
    step = fixed(1, contract.qty_digits)
    most = fixed(10 ** (contract.qty_digits + 6), contract.qty_digits)
    return {
        "symbol": contract.id,
        "pair": f"{contract.base}{contract.quote}",
        "contractType": contract.contract_type,
        "deliveryDate": contract.expiry_ms or NEVER_MS,
        "onboardDate": contract.listed_ms,
        "status": contract.status,
        "baseAsset": contract.base,
        "quoteAsset": contract.quote,
        "marginAsset": contract.settle,
        "pricePrecision": contract.price_digits,
        "quantityPrecision": contract.qty_digits,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": contract.underlying,
        "underlyingSubType": ["TradFi"] if contract.tradfi else [],
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "tickSize": tick,
                "minPrice": tick,
                "maxPrice": "4529764",
            },
            {"filterType": "LOT_SIZE", "stepSize": step, "minQty": step, "maxQty": most},
            {"filterType": "MIN_NOTIONAL", "notional": "5"},
        ],
        "orderTypes": ["LIMIT", "MARKET"],
        "timeInForce": ["GTC", "IOC", "FOK"],
    }


def _change_percent(day: Day, last: int) -> str:
    return f"{(last / day.open - 1) * 100:.3f}"


def _average(contract: Contract, day: Day, last: int) -> str:
    if not day.volume:
        return contract.price(last)
    return contract.price(round(day.quote / day.volume))
