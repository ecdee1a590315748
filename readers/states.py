"""What the service says of the channels behind the data: why nothing comes, and how clocks differ.

It says so in Redis (`md:health:{exchange}`). Where that isn't to be had, the ledger of gaps in the
store tells why a pair's channel has stopped, if that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

from marketdata import keys
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import MINUTE_MS, Gap, State
from readers.cache import Cache
from readers.deadlines import QUIET_MS
from readers.origins import Origins

_TTL_MS: Final = 1_000
_EXCHANGES_KEPT: Final = 64
_CHANNELS_KEPT: Final = 4_096
_LOOK_BACK_MS: Final = 7 * 86_400_000
_GAPS_READ: Final = 100
_OF_GAP: Final[Mapping[str, State]] = {"disconnected": "disconnected", "venue_down": "venue_down"}
_SHOWN_BY: Final = {"last_price": ("last_price", "candles")}
"""The forming minute shows the last price too, also where trades themselves aren't collected."""


@dataclass(frozen=True, slots=True)
class Health:
    """The hash `md:health:{exchange}`; without any fields it is as if the service were away.

    >>> health = Health({"time_ms": "5000", "clock_ahead_ms": "-40", "A/B:B.candles": "quiet"})
    >>> health.state("A/B:B", "candles"), health.state("A/B:B", "funding"), health.clock_ahead_ms
    ('quiet', 'live', -40)
    >>> health.is_current(34_999), health.is_current(35_000), Health({}).is_current(1)
    (True, False, False)
    """

    fields: Mapping[str, str]

    @property
    def clock_ahead_ms(self) -> int:
        """The exchange's time minus that of the service's host."""
        return int(self.fields.get("clock_ahead_ms", 0))

    def is_current(self, now_ms: int) -> bool:
        """Whether it is younger than its lifetime."""
        written_ms = self.fields.get("time_ms")
        return written_ms is not None and now_ms - int(written_ms) < keys.HEALTH_TTL_MS

    def state(self, pair: str, channel: str) -> State:
        """A pair's channel; `live` isn't written."""
        shown = (self.fields.get(f"{pair}.{name}") for name in _SHOWN_BY.get(channel, (channel,)))
        return cast("State", next((state for state in shown if state is not None), "live"))


class Worth(NamedTuple):
    """What a value is worth: its age by the exchange's clock (None without any), and its state."""

    age_ms: int | None
    state: State


class States:
    """Judges what was found; asks Redis and the store for states at most once a second."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._cache: Cache[str, Health] = Cache(_EXCHANGES_KEPT)
        self._of_gaps: Cache[tuple[str, str, str], State] = Cache(_CHANNELS_KEPT)

    def exchange_ms(self, exchange: str, now_ms: int) -> int:
        """The exchange's time, as far as the difference to ours is known."""
        health = self._health(exchange, now_ms)
        return now_ms if health is None else now_ms + health.clock_ahead_ms

    def judge(
        self,
        exchange: str,
        pair: str,
        channel: str,
        event_ms: int | None,
        deadline_ms: int,
        now_ms: int,
    ) -> Worth:
        """A pair's channel whose newest value is of `event_ms`, None where there is no value."""
        age_ms = None
        if event_ms is not None:
            age_ms = max(0, self.exchange_ms(exchange, now_ms) - event_ms)
        health = self._health(exchange, now_ms)
        fresh = age_ms is not None and age_ms <= deadline_ms
        if health is None:
            state = (
                "live" if fresh else self._state_of_gap(exchange, pair, channel, event_ms, now_ms)
            )
            return Worth(age_ms, state)
        state = health.state(pair, channel)
        # What is live there hasn't come here; and minutes confirmed as empty are stored, too.
        lags = channel == "candles" and age_ms is not None and age_ms > deadline_ms + QUIET_MS
        if not fresh and (state == "live" or (state == "quiet" and lags)):
            state = "late"
        return Worth(age_ms, state)

    def _health(self, exchange: str, now_ms: int) -> Health | None:
        known = self._cache.fresh(exchange, now_ms)
        if known is None:
            fields = self._origins.ask_hot(lambda hot: hot.health(exchange), counted=False)
            if fields is None:
                known = self._cache.in_grace(exchange, now_ms)
            else:
                known = Health(fields)
                self._cache.put(exchange, known, valid_until_ms=now_ms + _TTL_MS)
        return known if known is not None and known.is_current(now_ms) else None

    def _state_of_gap(
        self, exchange: str, pair: str, channel: str, event_ms: int | None, now_ms: int
    ) -> State:
        """By the newest open gap that begins after the newest value; asked once a second."""
        key = (exchange, pair, channel)
        state = self._of_gaps.fresh(key, now_ms)
        if state is None:
            state = self._ask_for_gap(exchange, pair, channel, event_ms, now_ms)
            self._of_gaps.put(key, state, valid_until_ms=now_ms + _TTL_MS)
        return state

    def _ask_for_gap(
        self, exchange: str, pair: str, channel: str, event_ms: int | None, now_ms: int
    ) -> State:
        start_ms = now_ms - _LOOK_BACK_MS
        if event_ms is not None:
            start_ms = max(start_ms, event_ms - event_ms % MINUTE_MS)
        try:
            rows = self._origins.ask_store(
                lambda store: store.rows(
                    "gap", exchange, pair, start_ms, now_ms + MINUTE_MS, _GAPS_READ
                ),
                counted=False,
            )
        except (StoreUnavailable, StoreRefused):
            return "late"
        shown_by = _SHOWN_BY.get(channel, (channel,))
        for gap in reversed(cast("list[Gap]", rows)):
            if gap.channel in shown_by and gap.state == "open":
                return _OF_GAP.get(gap.reason, "late")
        return "late"
