"""The control route: faults, counters, and the truth that tests compare with.

POST   /sim/faults                         put a fault in force (JSON; `faults.py` has the types)
GET    /sim/faults                         those in force, by number
DELETE /sim/faults[/<number>]              end them all, or one
GET    /sim/stats                          connections, requests, weight
GET    /sim/truth/<exchange>/<id>/klines   ?interval=3m&start=&end=&kind=   closed ones
GET    /sim/truth/<exchange>/<id>/marks    ?start=&end=&kind=               each second
GET    /sim/truth/<exchange>/<id>/funding  ?start=&end=&kind=               settled, and upcoming
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from aiohttp import web
from pydantic import ValidationError

from ingest.simulator.binance_streams import INTERVALS_MS
from ingest.simulator.faults import FAULT
from ingest.simulator.rest import json_response
from ingest.simulator.universe import Contract, Kind, fixed
from marketdata.errors import UnknownPair

if TYPE_CHECKING:
    from ingest.simulator.server import Simulator

_LONGEST_RANGE_MS = 31 * 86_400_000


class Control:
    """The routes under `/sim` of one simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/sim/faults", self._add),
            web.get("/sim/faults", self._list),
            web.delete("/sim/faults", self._clear),
            web.delete("/sim/faults/{number:\\d+}", self._remove),
            web.get("/sim/stats", self._stats),
            web.get("/sim/truth/{exchange}/{id}/klines", self._klines),
            web.get("/sim/truth/{exchange}/{id}/marks", self._marks),
            web.get("/sim/truth/{exchange}/{id}/funding", self._funding),
        ]

    async def _add(self, request: web.Request) -> web.Response:
        try:
            fault = FAULT.validate_json(await request.read())
            number = self._simulator.inject(fault)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False)
            return json_response({"error": "bad_fault", "detail": faults}, 422)
        except (UnknownPair, ValueError) as error:
            return json_response({"error": "bad_fault", "detail": str(error)}, 422)
        return json_response({"number": number}, 201)

    async def _list(self, request: web.Request) -> web.Response:
        listed = self._simulator.faults.listed(self._simulator.clock.now_ms())
        return json_response(
            {"faults": {str(n): fault.model_dump(exclude_none=True) for n, fault in listed.items()}}
        )

    async def _clear(self, request: web.Request) -> web.Response:
        self._simulator.faults.clear()
        return web.Response(status=204)

    async def _remove(self, request: web.Request) -> web.Response:
        found = self._simulator.faults.remove(int(request.match_info["number"]))
        return web.Response(status=204 if found else 404)

    async def _stats(self, request: web.Request) -> web.Response:
        return json_response(self._simulator.stats())

    async def _klines(self, request: web.Request) -> web.Response:
        contract, start_ms, end_ms = self._asked(request)
        interval_ms = INTERVALS_MS.get(request.query.get("interval", "3m"))
        if interval_ms is None:
            raise web.HTTPUnprocessableEntity(text=f"interval: one of {', '.join(INTERVALS_MS)}")
        now_ms = self._simulator.now_ms(contract.exchange)
        bars = self._simulator.market.klines(contract, interval_ms, start_ms, end_ms, now_ms)
        price = contract.price
        rows = [
            [
                bar.open_ms, price(bar.open), price(bar.high), price(bar.low), price(bar.close),
                contract.quantity(bar.volume), contract.amount(bar.quote), bar.trades,
            ]
            for bar in bars
            if bar.close_ms < now_ms
        ]  # fmt: skip
        columns = ["time", "open", "high", "low", "close", "volume", "quote_volume", "trades"]
        return json_response({"columns": columns, "rows": rows})

    async def _marks(self, request: web.Request) -> web.Response:
        contract, start_ms, end_ms = self._asked(request)
        rows = []
        for second_ms in range(-(-start_ms // 1000) * 1000, end_ms, 1000):
            mark = self._simulator.market.mark(contract, second_ms)
            rows.append([second_ms, fixed(mark.price, 8), fixed(mark.index_price, 8)])
        return json_response({"columns": ["second_ms", "mark_price", "index_price"], "rows": rows})

    async def _funding(self, request: web.Request) -> web.Response:
        contract, start_ms, end_ms = self._asked(request)
        market = self._simulator.market
        upcoming = market.funding(contract, self._simulator.now_ms(contract.exchange))
        settled = market.settled(contract, start_ms, end_ms)
        return json_response(
            {
                "rate": fixed(upcoming.rate, 8),
                "next_funding_ms": upcoming.next_ms,
                "interval_hours": contract.interval_hours,
                "settled": [[settled_ms, fixed(rate, 8)] for settled_ms, rate in settled],
            }
        )

    def _asked(self, request: web.Request) -> tuple[Contract, int, int]:
        """Contract, start and end; left out: the last hour."""
        kind = request.query.get("kind")
        kinds: dict[str | None, Kind | None] = {
            None: None,
            **{word: word for word in get_args(Kind)},
        }
        if kind not in kinds:
            raise web.HTTPUnprocessableEntity(text=f"kind: one of {', '.join(get_args(Kind))}")
        try:
            contract = self._simulator.market.contract(
                request.match_info["exchange"], request.match_info["id"], kinds[kind]
            )
            end_ms = int(request.query.get("end", self._simulator.now_ms(contract.exchange)))
            start_ms = int(request.query.get("start", end_ms - 3_600_000))
        except UnknownPair as error:
            raise web.HTTPNotFound(text=str(error)) from error
        except ValueError as error:
            raise web.HTTPUnprocessableEntity(text="start, end: milliseconds") from error
        if end_ms - start_ms > _LONGEST_RANGE_MS:
            raise web.HTTPUnprocessableEntity(text="at most 31 days at once")
        return contract, start_ms, end_ms
