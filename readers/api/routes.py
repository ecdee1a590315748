"""What may be asked over HTTP. A symbol has either form, `BTCUSDT` or `BTC/USDT:USDT`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from marketdata.errors import MarketDataError, StaleData, StoreRefused, StoreUnavailable
from marketdata.settings import Settings
from readers.api.answers import (
    JsonAnswer,
    describe,
    error_json,
    funding_json,
    last_json,
    mark_json,
    ohlcv_json,
)
from readers.api.health import channel_health, platform_health
from readers.api.page import status_page
from readers.client import MarketData
from readers.deadlines import Deadline, MaxAge
from readers.timeframes import Timeframe
from readers.values import Funding, Mark

MAX_CANDLES = 5_000
MAX_SYMBOLS = 500

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

open_routes = APIRouter()
"""What needs no token: a load balancer has none."""
routes = APIRouter(default_response_class=JsonAnswer)


def _data(request: Request) -> MarketData:
    data: MarketData = request.app.state.data
    return data


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _max_age(max_age: _Seconds | Literal["any"] | None = None) -> MaxAge:
    """Seconds, `any`, or the channel's own deadline where it is left out."""
    if max_age is None:
        return Deadline.OF_CHANNEL
    return None if max_age == "any" else max_age


def _timeframe(timeframe: str = "3m") -> str:
    try:
        Timeframe.parse(timeframe)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return timeframe


def _symbols(symbols: str) -> list[str]:
    """Several, separated by commas."""
    asked = list(dict.fromkeys(symbol for symbol in symbols.split(",") if symbol))
    if not 1 <= len(asked) <= MAX_SYMBOLS:
        raise HTTPException(422, f"symbols: {len(asked)} are named; valid: 1 to {MAX_SYMBOLS}")
    return asked


Data = Annotated[MarketData, Depends(_data)]
Config = Annotated[Settings, Depends(_settings)]
Age = Annotated[MaxAge, Depends(_max_age)]
Symbols = Annotated[list[str], Depends(_symbols)]
TimeframeName = Annotated[str, Depends(_timeframe)]
Exchange = str | None


@routes.get("/funding/health")
def funding_health(data: Data, config: Config, exchange: Exchange = None) -> Response:
    """How fresh the funding rates of an exchange are; 503 where none is."""
    name = exchange or next(iter(config.exchanges))
    health = {"exchange": name, **channel_health(data, Funding, name)}
    return _told(health, f"every funding rate of {name} is {health['state']}")


@routes.get("/funding/batch")
def funding_batch(
    data: Data, symbols: Symbols, max_age: Age, exchange: Exchange = None
) -> Response:
    """Funding of several symbols, separated by commas: `data` and `errors` by symbol."""
    found: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for symbol in symbols:
        try:
            found[symbol] = _funding(data, symbol, exchange, max_age)
        except (StoreUnavailable, StoreRefused):
            raise
        except MarketDataError as error:
            errors[symbol] = describe(error)
    return JsonAnswer({"data": found, "errors": errors})


@routes.get("/funding/{symbol:path}")
def funding(data: Data, symbol: str, max_age: Age, exchange: Exchange = None) -> Response:
    """What the exchange shows for the upcoming settlement, with the mark price."""
    return JsonAnswer(_funding(data, symbol, exchange, max_age))


@routes.get("/mark/{symbol:path}")
def mark(data: Data, symbol: str, max_age: Age, exchange: Exchange = None) -> Response:
    """Mark and index price."""
    return JsonAnswer(
        mark_json(data.get_mark_price(symbol, True, exchange=exchange, max_age=max_age))
    )


@routes.get("/last/{symbol:path}")
def last(data: Data, symbol: str, max_age: Age, exchange: Exchange = None) -> Response:
    """The price of the last trade."""
    return JsonAnswer(
        last_json(data.get_last_price(symbol, True, exchange=exchange, max_age=max_age))
    )


@routes.get("/ohlcv/{symbol:path}")
def ohlcv(
    data: Data,
    config: Config,
    symbol: str,
    timeframe: TimeframeName,
    max_age: Age,
    exchange: Exchange = None,
    limit: Annotated[int, Query(ge=1, le=MAX_CANDLES)] = 200,
) -> Response:
    """The newest closed candles, ascending."""
    name = exchange or next(iter(config.exchanges))
    frame = data.get_ohlcv(symbol, timeframe, limit, exchange=name, max_age=max_age)
    return JsonAnswer(ohlcv_json(frame, name, data.pair(symbol, name), timeframe))


@open_routes.get("/health")
def health(data: Data, config: Config) -> Response:
    """200 while every exchange delivers, 503 otherwise."""
    found = platform_health(data, config)
    return _told(found, f"an exchange delivers nothing fresh: {found['state']}")


@routes.get("/metrics")
def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


@routes.get("/")
def page(data: Data, config: Config) -> Response:
    """The status page."""
    marks = {name: data.readings(Mark, name) for name in config.exchanges}
    fundings = {name: data.readings(Funding, name) for name in config.exchanges}
    return HTMLResponse(status_page(platform_health(data, config), marks, fundings))


def _funding(data: MarketData, symbol: str, exchange: str | None, max_age: MaxAge) -> Any:
    rate = data.get_funding_rate(symbol, True, exchange=exchange, max_age=max_age)
    try:
        price = data.get_mark_price(rate.pair, True, exchange=rate.exchange, max_age=max_age)
    except StaleData:
        price = None
    return funding_json(rate, price)


def _told(health: dict[str, Any], what_is_wrong: str) -> JsonAnswer:
    if health["state"] in ("live", "quiet"):
        return JsonAnswer(health)
    error = error_json(StaleData.code, what_is_wrong, health)
    return JsonAnswer({"error": error}, 503, {"Retry-After": "1"})
