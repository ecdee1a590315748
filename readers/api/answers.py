"""What the HTTP API answers: one shape for each kind of data, and one for every error."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from marketdata.errors import (
    MarketDataError,
    StaleData,
    StoreRefused,
    StoreUnavailable,
    TransientError,
    UnknownPair,
)
from readers.symbols import short_form
from readers.values import Funding, LastTrade, Mark, Reading

if TYPE_CHECKING:
    import pandas as pd

_RETRY_AFTER_S = 1.0
_STATUS = {
    UnknownPair: HTTPStatus.NOT_FOUND,
    StaleData: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreRefused: HTTPStatus.SERVICE_UNAVAILABLE,
}

Json = dict[str, Any]


class JsonAnswer(Response):
    """JSON; a number that isn't one is null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def funding_json(funding: Funding, mark: Mark | None) -> Json:
    """A funding rate, with the mark price where there is a fresh one."""
    return {
        **_names(funding),
        "funding_rate": funding.rate,
        "predicted_rate": funding.predicted_rate,
        "mark_price": None if mark is None else mark.price,
        "index_price": None if mark is None else mark.index_price,
        "next_funding_ms": funding.next_funding_ms,
        "interval_hours": funding.interval_hours,
        **_times(funding),
    }


def mark_json(mark: Mark) -> Json:
    return {
        **_names(mark),
        "mark_price": mark.price,
        "index_price": mark.index_price,
        **_times(mark),
    }


def last_json(trade: LastTrade) -> Json:
    return {**_names(trade), "price": trade.price, **_times(trade)}


def ohlcv_json(frame: pd.DataFrame, exchange: str, pair: str, timeframe: str) -> Json:
    """Candles as arrays of `columns`, times in UTC milliseconds."""
    times = frame["date"].astype("int64").tolist()
    values = frame[["open", "high", "low", "close", "volume"]].to_numpy().tolist()
    return {
        "symbol": short_form(pair) or pair,
        "pair": pair,
        "exchange": exchange,
        "timeframe": timeframe,
        "columns": ["time", "open", "high", "low", "close", "volume"],
        "data": [[time, *row] for time, row in zip(times, values, strict=True)],
        "filled": frame.attrs["filled"],
        "source": frame.attrs["source"],
        "state": frame.attrs["state"],
    }


def error_json(code: str, message: str, detail: object = None) -> Json:
    return {"code": code, "message": message, "detail": detail}


def describe(error: MarketDataError) -> Json:
    """The error as every answer shows it."""
    detail: Json | None = None
    if isinstance(error, UnknownPair):
        detail = {"pair": error.pair, "exchange": error.exchange, "near": list(error.near)}
    elif isinstance(error, StaleData):
        detail = {"age_ms": error.age_ms, "max_age_ms": error.max_age_ms, "state": error.state}
    return error_json(error.code, str(error), detail)


def refuse(error: MarketDataError) -> JsonAnswer:
    """The answer to a request that met `error`."""
    status = _STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
    headers: Mapping[str, str] = {}
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        named = error.retry_after_s if isinstance(error, TransientError) else None
        headers = {"Retry-After": str(ceil(named or _RETRY_AFTER_S))}
    return JsonAnswer({"error": describe(error)}, status, headers)


def _names(reading: Reading) -> Json:
    symbol = short_form(reading.pair) or reading.pair
    return {"symbol": symbol, "pair": reading.pair, "exchange": reading.exchange}


def _times(reading: Reading) -> Json:
    return {
        "event_ms": reading.event_ms,
        "age_ms": reading.age_ms,
        "source": reading.source,
    }
