"""Bybit v5's REST side: market data; errors come as HTTP 200 with a code of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from aiohttp import web

from ingest.clock import Clock
from ingest.simulator import bybit_wire as wire
from ingest.simulator.bybit_streams import INTERVALS_MS, BybitStreams, Category
from ingest.simulator.faults import FaultBoard, Maintenance
from ingest.simulator.limits import BlockingWindow
from ingest.simulator.market import HOUR_MS, Market
from ingest.simulator.rest import Rest, json_response
from ingest.simulator.stats import Stats
from ingest.simulator.universe import BYBIT, Contract, fixed

Query = Mapping[str, str]
Handler = Callable[[Query, int], Awaitable[wire.Json]]

INSTRUMENTS_PAGE = 60
"""Rows of a page at most, whatever `limit` asks for: even this universe then has pages."""
_PARAMETER_ERROR = 10_001
_CLOSED = 10_016


class _Refused(Exception):
    """A `retCode` with its words."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class BybitRest(Rest):
    """`/v5/market` for the categories `linear` and `spot`."""

    name = BYBIT

    def __init__(
        self,
        market: Market,
        clock: Clock,
        faults: FaultBoard,
        stats: Stats,
        streams: Mapping[Category, BybitStreams],
    ) -> None:
        super().__init__(market, clock, faults, stats)
        self._streams = streams
        self._requests = BlockingWindow()
        self._calls: dict[str, Handler] = {
            "time": self._time,
            "instruments-info": self._instruments,
            "kline": self._klines,
            "mark-price-kline": self._mark_klines,
            "tickers": self._tickers,
            "funding/history": self._funding_history,
        }

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/v5/market/{call:.+}", self.serve),
            web.get("/v5/system/status", self.serve_status),
        ]

    def status(self, work: Maintenance | None, now_ms: int) -> web.Response:
        listed = [wire.maintenance_row(now_ms)] if work else []
        return _envelope({"list": listed}, now_ms)

    def closed(self, now_ms: int) -> web.Response:
        response = _envelope({}, now_ms, _CLOSED, "System maintenance")
        response.set_status(503)
        return response

    async def respond(self, request: web.Request, now_ms: int) -> web.Response:
        if not self._requests.admit(now_ms):
            return self.limited(403)
        call = self._calls.get(request.match_info["call"])
        if call is None:
            return web.Response(status=404)
        try:
            return _envelope(await call(request.query, now_ms), now_ms)
        except _Refused as error:
            return _envelope({}, now_ms, _PARAMETER_ERROR, str(error))

    def limited(self, status: int) -> web.Response:
        if status == 403:
            return web.Response(status=403, text="access too frequent")
        return _envelope({}, self.now_ms(), 10_006, "Too many visits!", _SPENT)

    async def _time(self, query: Query, now_ms: int) -> wire.Json:
        return {"timeSecond": str(now_ms // 1000), "timeNano": str(now_ms * 1_000_000)}

    async def _instruments(self, query: Query, now_ms: int) -> wire.Json:
        category, streams = self._category(query)
        contracts = list(streams.contracts.values())
        if "symbol" in query:
            contracts = [self._contract(query)]
        rows = [wire.instrument_row(contract, n) for n, contract in enumerate(contracts, start=5)]
        if category == "spot":
            return {"category": category, "list": rows}
        first = 0
        if cursor := query.get("cursor"):
            ids = [contract.id for contract in contracts]
            last = cursor.rpartition("&last=")[2]
            if last not in ids:
                raise _Refused("params error: cursor invalid")
            first = ids.index(last) + 1
        page = rows[first : first + min(_limit(query, 500, 1_000), INSTRUMENTS_PAGE)]
        more = first + len(page) < len(rows)
        following = f"first%3D{page[0]['symbol']}%26last%3D{page[-1]['symbol']}" if more else ""
        return {"category": category, "list": page, "nextPageCursor": following}

    async def _klines(self, query: Query, now_ms: int) -> wire.Json:
        contract, category = self._contract(query), self._category(query)[0]
        interval_ms, start_ms, end_ms = self._range(query, now_ms)
        bars = await self.klines(contract, interval_ms, start_ms, end_ms, now_ms)
        rows = [wire.kline_row(contract, bar) for bar in bars]
        return {"symbol": contract.id, "category": category, "list": rows[::-1]}

    async def _mark_klines(self, query: Query, now_ms: int) -> wire.Json:
        contract, category = self._contract(query), self._category(query)[0]
        if category == "spot":
            raise _Refused("params error: Category is invalid")
        interval_ms, start_ms, end_ms = self._range(query, now_ms)
        bars = await self.mark_klines(contract, interval_ms, start_ms, end_ms, now_ms)
        rows = [wire.mark_kline_row(contract, bar) for bar in bars]
        return {"symbol": contract.id, "category": category, "list": rows[::-1]}

    def _range(self, query: Query, now_ms: int) -> tuple[int, int, int]:
        """Interval, and start <= open < end of the rows that `limit` leaves: the first ones after a
        lone start, otherwise the newest."""
        interval_ms = INTERVALS_MS.get(query.get("interval", ""))
        if interval_ms is None:
            raise _Refused("Invalid period!")
        limit = _limit(query, 200, 1_000)
        end_ms = min(_number(query, "end", now_ms), now_ms)
        start_ms = _number(query, "start", 0)
        if "start" in query and "end" not in query:
            first_ms = -(-start_ms // interval_ms) * interval_ms
            return interval_ms, first_ms, min(first_ms + limit * interval_ms, now_ms + 1)
        newest_ms = end_ms // interval_ms * interval_ms
        return interval_ms, max(start_ms, newest_ms - (limit - 1) * interval_ms), end_ms + 1

    async def _tickers(self, query: Query, now_ms: int) -> wire.Json:
        category, streams = self._category(query)
        one = self._contract(query) if "symbol" in query else None
        rows = []
        for contract in [one] if one else streams.contracts.values():
            fields = streams.ticker(contract, now_ms - now_ms % 1_000)
            rows.append(wire.ticker_row(contract, fields))
            await asyncio.sleep(0)
        return {"category": category, "list": rows}

    async def _funding_history(self, query: Query, now_ms: int) -> wire.Json:
        contract, category = self._contract(query), self._category(query)[0]
        if category == "spot" or contract.interval_hours is None:
            raise _Refused("params error: Symbol Invalid")
        if "startTime" in query and "endTime" not in query:
            raise _Refused("params error: startTime is passed without endTime")
        limit = _limit(query, 200, 200)
        end_ms = min(_number(query, "endTime", now_ms), now_ms)
        reach_ms = limit * contract.interval_hours * HOUR_MS
        start_ms = max(_number(query, "startTime", 0), end_ms - reach_ms + 1)
        rows: list[wire.Json] = [
            {
                "symbol": contract.id,
                "fundingRate": wire.plain(fixed(rate, 8)),
                "fundingRateTimestamp": str(settled_ms),
            }
            for settled_ms, rate in self.market.settled(contract, start_ms, end_ms)
        ]
        return {"category": category, "list": rows[::-1]}

    def _category(self, query: Query) -> tuple[Category, BybitStreams]:
        match query.get("category", ""):
            case "linear" | "spot" as category:
                return category, self._streams[category]
        raise _Refused("params error: Category is invalid")

    def _contract(self, query: Query) -> Contract:
        contract = self._category(query)[1].contracts.get(query.get("symbol", ""))
        if contract is None:
            raise _Refused("params error: Symbol Invalid")
        return contract


_SPENT = {"X-Bapi-Limit": "600", "X-Bapi-Limit-Status": "0"}


def _envelope(
    result: wire.Json,
    now_ms: int,
    code: int = 0,
    message: str = "OK",
    headers: dict[str, str] | None = None,
) -> web.Response:
    return json_response(
        {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": now_ms},
        headers=headers,
    )


def _number(query: Query, name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise _Refused(f"params error: {name} invalid")
    return int(text)


def _limit(query: Query, default: int, most: int) -> int:
    limit = _number(query, "limit", default)
    if limit < 1:
        raise _Refused("params error: limit invalid")
    return min(limit, most)
