"""The watch over one exchange: its states, silent connections, whether it is down as a whole.

Once a second it judges what has come (`judge`), has a connection replaced that forgets one of its
pairs, and finds out, when no connection is up, whether the exchange is down or only its streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from ingest.clock import Clock
from ingest.exchanges.rest_base import ExchangeRest
from ingest.freshness import Change, Freshness
from ingest.judge import Judge
from ingest.lanes import LaneStatus
from ingest.sinks.base import Marker
from marketdata.errors import ExchangeUnavailable, MarketDataError

log = structlog.get_logger()

PROBE_S = 15.0
"""How often an exchange without any connection is asked whether it is there."""
REPLACE_AGAIN_MS = 120_000
"""A connection is replaced for a silent pair at most this often."""
UNHEARD_MS = 60_000
"""For so long the weight budget may keep every question back."""
NAMED = 3


class Lanes(Protocol):
    """What a sentinel needs of a feed."""

    def lane_of(self, pair: str, channel: str) -> str | None: ...

    def lane_statuses(self) -> Sequence[LaneStatus]: ...

    def rotate(self, lane_id: str, cause: str) -> None: ...


class Sentinel:
    """Watches one exchange.

    Parameters
    ----------
    lanes
        The running feed, None while there is none.
    others_reached
        Whether another exchange answers: if none does either, it is our network that is down.
    look_at_markets
        Called when a pair has fallen silent alone: it may not be traded any more.
    """

    def __init__(
        self,
        exchange: str,
        rest: ExchangeRest,
        lanes: Callable[[], Lanes | None],
        others_reached: Callable[[], bool],
        look_at_markets: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.freshness = Freshness(self._lane_of)
        self.judge = Judge(exchange, self.freshness)
        self._exchange = exchange
        self._rest = rest
        self._lanes = lanes
        self._others_reached = others_reached
        self._look_at_markets = look_at_markets
        self._clock = clock
        self._answered = False
        self._replaced_ms: dict[str, int] = {}
        self._clock_reported = False

    @property
    def reached(self) -> bool:
        """Whether it is there: over a connection, or it has answered since none is up."""
        connected = self._lanes() is not None and self.freshness.all_down_since_ms is None
        return connected or self._answered

    async def probe(self) -> None:
        """Ask the exchange whether it is there while no connection is up; until cancelled."""
        while True:
            await self._clock.sleep(PROBE_S)
            if self._all_down(self._clock.now_ms()):
                await self._ask()

    def look(self) -> list[Marker]:
        """Judge everything now; what has changed."""
        now_ms = self._clock.now_ms()
        lanes = self._lanes()
        if lanes is not None:
            for lane in lanes.lane_statuses():
                up = lane.state in ("live", "late")
                self.freshness.connection(lane.id, up=up, now_ms=now_ms)
        if not self._all_down(now_ms):
            self._answered = False
            self._set_venue_down(False, "")
        changes = self.judge.look(now_ms)
        if lanes is not None:
            self._replace_silent(lanes, now_ms)
        self._report(changes)
        return [self._marker(change, now_ms) for change in changes]

    def _marker(self, change: Change, now_ms: int) -> Marker:
        return {
            "kind": "state",
            "exchange": self._exchange,
            "symbol": change.pair,
            "channel": change.channel,
            "state": change.new,
            "since_ms": now_ms,
        }

    def _lane_of(self, pair: str, channel: str) -> str | None:
        lanes = self._lanes()
        return None if lanes is None else lanes.lane_of(pair, channel)

    def _replace_silent(self, lanes: Lanes, now_ms: int) -> None:
        """A connection that is up and has forgotten a pair is opened anew."""
        for pair, channels in self.freshness.channels().items():
            for channel in channels:
                if self.freshness.state(pair, channel) != "late":
                    continue
                lane = lanes.lane_of(pair, channel)
                # One that brings nothing at all is replaced by its own supervisor.
                if lane is None or not self.freshness.delivers(pair, channel, now_ms):
                    continue
                if now_ms - self._replaced_ms.get(lane, 0) < REPLACE_AGAIN_MS:
                    continue
                self._replaced_ms[lane] = now_ms
                log.warning(
                    "pair_silent", exchange=self._exchange, pair=pair, channel=channel,
                    lane=lane, next="the connection is replaced",
                )  # fmt: skip
                lanes.rotate(lane, f"{pair} is silent on it")
                self._look_at_markets()

    async def _ask(self) -> None:
        client, asked_ms = self._rest.client, self._clock.now_ms()
        cause = ""
        try:
            async with self._clock.timeout(PROBE_S):
                if not client.is_held:
                    await self._rest.server_ms()
        except ExchangeUnavailable as error:
            cause = str(error)
        except TimeoutError:
            if client.answered_ms >= asked_ms - UNHEARD_MS and not client.is_held:
                return  # the question may still wait for its turn
            cause = f"no answer within {PROBE_S:g} s"
        except MarketDataError:
            pass  # it answers, whatever it says
        if not cause or client.is_held:
            self._answered = True  # an exchange that refuses us isn't down
            self._set_venue_down(False, "")
        else:
            # Its own words that it isn't there need no second witness.
            self._answered = client.answered_ms >= asked_ms
            self._set_venue_down(self._answered or self._others_reached(), cause)

    def _all_down(self, now_ms: int) -> bool:
        since_ms = self.freshness.all_down_since_ms
        return since_ms is not None and now_ms - since_ms >= PROBE_S * 1000

    def _set_venue_down(self, down: bool, cause: str) -> None:
        if down and not self.freshness.venue_down:
            log.error("venue_down", exchange=self._exchange, cause=cause, probe_s=PROBE_S)
        if not down and self.freshness.venue_down:
            log.info("venue_up", exchange=self._exchange)
        self.freshness.venue_down = down

    def _report(self, changes: Sequence[Change]) -> None:
        """One line for all that changed alike."""
        alike: Counter[tuple[str, str]] = Counter()
        names: dict[tuple[str, str], list[str]] = {}
        for change in changes:
            # Connections and exchanges that are down have a line of their own.
            if change.new == "late" or (change.old == "late" and change.new == "live"):
                kind = (change.channel, change.new)
                alike[kind] += 1
                names.setdefault(kind, []).append(change.pair)
        for (channel, state), count in alike.items():
            some = names[channel, state][:NAMED]
            log.warning(
                "channels_changed", exchange=self._exchange, channel=channel, state=state,
                pairs=count, some=some,
            )  # fmt: skip
        offset = self.freshness.offset
        if offset.is_wrong != self._clock_reported:
            self._clock_reported = offset.is_wrong
            log.error("clock_wrong" if offset.is_wrong else "clock_right",
                      exchange=self._exchange, exchange_ahead_ms=offset.ms)  # fmt: skip
