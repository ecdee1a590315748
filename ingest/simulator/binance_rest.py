"""Binance USD-M futures' REST side: market data, request weight, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from aiohttp import web

from ingest.clock import Clock
from ingest.simulator import binance_wire as wire
from ingest.simulator.binance_streams import INTERVALS_MS, TRADFI_PHASE_MS, shown_funding
from ingest.simulator.faults import FaultBoard, Maintenance
from ingest.simulator.limits import MinuteWeight, SlidingWindow, Verdict
from ingest.simulator.market import Market
from ingest.simulator.rest import Rest, json_response
from ingest.simulator.stats import Stats
from ingest.simulator.tape import seed_of
from ingest.simulator.universe import BINANCE, Contract

Query = Mapping[str, str]
Handler = Callable[[Query, int], Awaitable[object]]

MOST_ROWS = 1_500
_MOST_FUNDING_ROWS = 1_000
_LATEST_STAMP_MS = 15
"""Settlements are stamped up to so much after their hour."""


class _Refused(Exception):
    """An error of the exchange: HTTP 400 with its code and words."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class BinanceRest(Rest):
    """`/fapi/v1`. Calls cost weight, refused ones too; the two funding calls have a limit of their
    own and no weight header."""

    name = BINANCE

    def __init__(
        self,
        market: Market,
        clock: Clock,
        faults: FaultBoard,
        stats: Stats,
        weight_limit: int = 2_400,
    ) -> None:
        super().__init__(market, clock, faults, stats)
        self.weight = MinuteWeight(weight_limit)
        self._funding_calls = SlidingWindow(limit=500, window_ms=300_000)
        self._calls: dict[str, tuple[Handler, Callable[[Query], int]]] = {
            "time": (self._time, _flat(1)),
            "exchangeInfo": (self._exchange_info, _flat(1)),
            "klines": (self._klines, _rows_weight),
            "markPriceKlines": (self._mark_klines, _rows_weight),
            "premiumIndex": (self._premium_index, _by_symbol(1, 10)),
            "fundingInfo": (self._funding_info, _flat(0)),
            "fundingRate": (self._funding_rate, _flat(0)),
            "ticker/24hr": (self._day_ticker, _by_symbol(1, 40)),
            "ticker/price": (self._price_ticker, _by_symbol(1, 2)),
        }

    @property
    def _contracts(self) -> dict[str, Contract]:
        return {
            contract.id: contract
            for contract in self.market.listed(BINANCE, "perpetual", "future")
            if not contract.coin_margined
        }

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/fapi/v1/{call:.+}", self.serve),
            web.get("/sapi/v1/system/status", self.serve_status),
        ]

    def status(self, work: Maintenance | None, now_ms: int) -> web.Response:
        return json_response(
            {"status": int(work is not None), "msg": "system_maintenance" if work else "normal"}
        )

    def closed(self, now_ms: int) -> web.Response:
        return json_response({"code": -1, "msg": "system maintenance"}, 503)

    async def respond(self, request: web.Request, now_ms: int) -> web.Response:
        call = self._calls.get(request.match_info["call"])
        if call is None:
            return json_response({"code": -5000, "msg": "Path is invalid"}, 404)
        handler, weigh = call
        weight = weigh(request.query)
        if weight:
            verdict = self.weight.charge(weight, now_ms)
            headers = {"X-MBX-USED-WEIGHT-1M": str(verdict.used)}
            if verdict.status != 200:
                return _over_limit(verdict, request.remote or "", headers)
        else:
            headers = {}
            if not self._funding_calls.admit(now_ms):
                return self.limited(429)
        try:
            return json_response(await handler(request.query, now_ms), headers=headers)
        except _Refused as error:
            return json_response({"code": error.code, "msg": str(error)}, 400, headers)

    def limited(self, status: int) -> web.Response:
        return json_response({"code": -1003, "msg": "Too many requests."}, status)

    async def _time(self, query: Query, now_ms: int) -> object:
        return {"serverTime": now_ms}

    async def _exchange_info(self, query: Query, now_ms: int) -> object:
        return {
            "timezone": "UTC",
            "serverTime": now_ms,
            "futuresType": "U_MARGINED",
            "rateLimits": [
                {
                    "rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1,
                    "limit": self.weight.limit,
                },
            ],
            "exchangeFilters": [],
            "assets": [],
            "symbols": [wire.symbol_row(contract) for contract in self._contracts.values()],
        }  # fmt: skip

    async def _klines(self, query: Query, now_ms: int) -> object:
        contract, interval_ms, start_ms, end_ms, limit = self._range(query, now_ms)
        bars = await self.klines(contract, interval_ms, start_ms, end_ms, now_ms)
        bars = bars[:limit] if "startTime" in query else bars[-limit:]
        return [wire.kline_row(contract, bar) for bar in bars]

    async def _mark_klines(self, query: Query, now_ms: int) -> object:
        contract, interval_ms, start_ms, end_ms, limit = self._range(query, now_ms)
        bars = await self.mark_klines(contract, interval_ms, start_ms, end_ms, now_ms)
        bars = bars[:limit] if "startTime" in query else bars[-limit:]
        return [wire.mark_kline_row(bar, interval_ms) for bar in bars]

    def _range(self, query: Query, now_ms: int) -> tuple[Contract, int, int, int, int]:
        """Contract, interval, start <= open < end, rows at most. The range is narrowed to the rows
        that are given: the first ones after a start, otherwise the newest."""
        limit = _number(query, "limit", 500)
        if not 0 < limit <= MOST_ROWS:
            raise _Refused(-1130, "Data sent for parameter 'limit' is not valid.")
        contract = self._contract(query)
        interval_ms = INTERVALS_MS.get(query.get("interval", ""))
        if interval_ms is None:
            raise _Refused(-1120, "Invalid interval.")
        end_ms = min(_number(query, "endTime", now_ms), now_ms) + 1
        if "startTime" in query:
            start_ms = max(_number(query, "startTime", 0), contract.listed_ms)
            end_ms = min(end_ms, start_ms + (limit + 1) * interval_ms)
        else:
            start_ms = min(end_ms, contract.expiry_ms or end_ms) - limit * interval_ms
        return contract, interval_ms, start_ms, end_ms, limit

    async def _premium_index(self, query: Query, now_ms: int) -> object:
        if "symbol" in query:
            return self._premium(self._contract(query), now_ms)
        return [self._premium(contract, now_ms) for contract in self._contracts.values()]

    def _premium(self, contract: Contract, now_ms: int) -> wire.Json:
        phase_ms = TRADFI_PHASE_MS if contract.tradfi else 0
        time_ms = (now_ms - phase_ms) // 1000 * 1000 + phase_ms
        mark = self.market.mark(contract, time_ms - phase_ms)
        funding = shown_funding(self.market, contract, time_ms)
        return wire.premium_row(contract, mark, funding, time_ms)

    async def _funding_info(self, query: Query, now_ms: int) -> object:
        """Only contracts whose interval or caps were adjusted; BTCUSDT is, at eight hours."""
        return [
            wire.funding_info_row(contract)
            for contract in self.market.listed(BINANCE, "perpetual")
            if contract.active and (contract.interval_hours != 8 or contract.id == "BTCUSDT")
        ]

    async def _funding_rate(self, query: Query, now_ms: int) -> object:
        timed = "startTime" in query or "endTime" in query
        limit = _number(query, "limit", 100 if timed else 200)
        if not 0 < limit <= _MOST_FUNDING_ROWS:
            raise _Refused(-1130, "Data sent for parameter 'limit' is not valid.")
        end_ms = min(_number(query, "endTime", now_ms), now_ms)
        # Eight-hourly ones reach back furthest.
        start_ms = _number(query, "startTime", end_ms - limit * 28_800_000)
        one = self._contract(query) if "symbol" in query else None
        contracts = [one] if one else list(self._contracts.values())
        rows = [
            row
            for contract in contracts
            if contract.interval_hours is not None and contract.active
            for row in self._settlements(contract, start_ms, end_ms)
        ]
        rows.sort(key=lambda row: row["fundingTime"])
        return rows[:limit] if "startTime" in query else rows[-limit:]

    def _settlements(
        self, contract: Contract, start_ms: int, end_ms: int
    ) -> list[dict[str, int | str]]:
        rows: list[dict[str, int | str]] = []
        earliest_ms = start_ms - _LATEST_STAMP_MS
        for settled_ms, rate in self.market.settled(contract, earliest_ms, end_ms):
            draw = seed_of("settlement", contract.id, settled_ms)
            time_ms = settled_ms + draw % (_LATEST_STAMP_MS + 1)
            if not start_ms <= time_ms <= end_ms:
                continue
            row: dict[str, int | str] = {
                "symbol": contract.id,
                "fundingTime": time_ms,
                "fundingRate": wire.eight(rate),
                "markPrice": wire.eight(self.market.mark(contract, settled_ms).price),
                "rateType": "Regular",
            }
            rows.append(row)
            if contract.underlying == "EQUITY" and draw % 16 == 7:
                rows.append({**row, "fundingRate": "0.00040000", "rateType": "Special"})
        return rows

    async def _day_ticker(self, query: Query, now_ms: int) -> object:
        if "symbol" in query:
            return self._day_row(self._contract(query), now_ms)
        rows = []
        for contract in self._contracts.values():
            if contract.active:
                rows.append(self._day_row(contract, now_ms))
                await asyncio.sleep(0)
        return rows

    def _day_row(self, contract: Contract, now_ms: int) -> wire.Json:
        last = self.market.last_price(contract, now_ms)
        return wire.ticker_row(contract, self.market.day(contract, now_ms), last, now_ms)

    async def _price_ticker(self, query: Query, now_ms: int) -> object:
        if "symbol" in query:
            return self._price_row(self._contract(query), now_ms)
        active = [contract for contract in self._contracts.values() if contract.active]
        return [self._price_row(contract, now_ms) for contract in active]

    def _price_row(self, contract: Contract, now_ms: int) -> wire.Json:
        last = self.market.last_price(contract, now_ms)
        return {"symbol": contract.id, "price": contract.price(last), "time": now_ms}

    def _contract(self, query: Query) -> Contract:
        """REST takes ids in either case."""
        if not query.get("symbol"):
            raise _Refused(
                -1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed."
            )
        contract = self._contracts.get(query["symbol"].upper())
        if contract is None:
            raise _Refused(-1121, "Invalid symbol.")
        return contract


def _number(query: Query, name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.lstrip("-").isdecimal():
        raise _Refused(-1130, f"Data sent for parameter '{name}' is not valid.")
    return int(text)


def _over_limit(verdict: Verdict, address: str, headers: dict[str, str]) -> web.Response:
    message = "Too many requests; current limit is 2400 request weight per 1 MINUTE."
    if verdict.status == 418:
        message = (
            f"Way too many requests; IP({address}) banned until {verdict.banned_until_ms}. "
            "Please use the websocket for live updates to avoid bans."
        )
    headers = {**headers, "Retry-After": str(verdict.retry_after_s)}
    return json_response({"code": -1003, "msg": message}, verdict.status, headers)


def _flat(weight: int) -> Callable[[Query], int]:
    return lambda query: weight


def _by_symbol(one: int, all_: int) -> Callable[[Query], int]:
    return lambda query: one if "symbol" in query else all_


def _rows_weight(query: Query) -> int:
    """By the rows asked for, as measured in 2026: the bands include their upper bound."""
    text = query.get("limit", "")
    if not text:
        return 5
    limit = int(text) if text.isdecimal() else MOST_ROWS
    return 1 if limit <= 100 else 2 if limit <= 500 else 5 if limit <= 1_000 else 10
