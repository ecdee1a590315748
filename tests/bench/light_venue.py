"""Binance's history calls for one pair with next to no work: the bare limit of a backfill.

It counts weight as the exchange does and refuses as it does, so that a backfill that asks too much
fails. Rows are all the same but for their times. Run: `python -m tests.bench.light_venue PORT`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import orjson
from aiohttp import web

from ingest.simulator import binance_wire as wire
from ingest.simulator.limits import MinuteWeight
from ingest.simulator.market import Market

EIGHT_HOURS_MS = 28_800_000
ROW = ["83137.90", "83155.70", "83082.90", "83084.90", "102.437"]
REST = ["8514292.61220", 4409, "49.832", "4141805.93340", "0"]


class LightVenue:
    """One pair's history; `weight.most` is the most weight that a minute has seen."""

    def __init__(self) -> None:
        market = Market(as_of_ms=int(time.time() * 1000))
        self.weight = MinuteWeight()
        self._contract = market.contract("BINANCE_FUTURES", "BTCUSDT")

    async def answer(self, request: web.Request) -> web.Response:
        """Any of the calls that a backfill makes; `/fapi/v1/stats` tells what it cost."""
        now_ms = int(time.time() * 1000)
        call, query = request.match_info["call"], request.query
        if call == "stats":
            return web.json_response({"most_weight": self.weight.most})
        verdict = self.weight.charge(_weight(call, query), now_ms)
        headers = {"X-MBX-USED-WEIGHT-1M": str(verdict.used)}
        if verdict.status != 200:
            return web.json_response({"code": -1003}, status=verdict.status, headers=headers)
        body = orjson.dumps(self._body(call, query, now_ms))
        return web.Response(body=body, content_type="application/json", headers=headers)

    def _body(self, call: str, query: Mapping[str, str], now_ms: int) -> object:
        if call == "time":
            return {"serverTime": now_ms}
        if call == "exchangeInfo":
            return {"symbols": [wire.symbol_row(self._contract)]}
        if call == "fundingInfo":
            return [{"symbol": "BTCUSDT", "fundingIntervalHours": 8}]
        start_ms, end_ms = int(query["startTime"]), int(query["endTime"])
        if call == "fundingRate":
            first_ms = -(-start_ms // EIGHT_HOURS_MS) * EIGHT_HOURS_MS
            times = range(first_ms, end_ms + 1, EIGHT_HOURS_MS)[:1000]
            rate = {"symbol": "BTCUSDT", "fundingRate": "0.0001", "rateType": "Regular"}
            return [rate | {"fundingTime": time_ms} for time_ms in times]
        step_ms = 180_000 if call == "markPriceKlines" else 60_000
        times = range(start_ms, end_ms + 1, step_ms)
        return [[time_ms, *ROW, time_ms + step_ms - 1, *REST] for time_ms in times]


def _weight(call: str, query: Mapping[str, str]) -> int:
    if call.startswith("funding"):
        return 0
    rows = int(query.get("limit", 1))
    return next(
        weight for most, weight in ((100, 1), (500, 2), (1000, 5), (1500, 10)) if rows <= most
    )


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/fapi/v1/{call:.+}", LightVenue().answer)
    web.run_app(
        app, host="127.0.0.1", port=int(sys.argv[1]), print=lambda *_: print("up", flush=True)
    )
