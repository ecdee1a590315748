"""Whether the data behind the API is fresh: a channel is live while any of its values is.

Of one without any fresh value the newest tells the state: whether it is late, its connection is
down, or the exchange is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from marketdata.schema import STATES
from marketdata.settings import Settings
from readers.client import MarketData
from readers.values import Funding, LastTrade, Mark, Reading

_KINDS: tuple[type[Reading], ...] = (Mark, Funding, LastTrade)


def channel_health(data: MarketData, kind: type[Reading], exchange: str) -> dict[str, Any]:
    """State of one channel of an exchange.

    `pairs` have a value, `fresh` of them one within its deadline, `late` has the others' ages.
    """
    readings = data.readings(kind, exchange).values()
    newest = min(readings, key=lambda reading: reading.age_ms, default=None)
    late = {
        reading.pair: reading.age_ms for reading in readings if reading.age_ms > reading.deadline_ms
    }
    state = "live"
    if len(late) == len(readings):
        state = "late" if newest is None else data.state_of(newest)
    return {
        "state": state,
        "age_ms": None if newest is None else newest.age_ms,
        "pairs": len(readings),
        "fresh": len(readings) - len(late),
        "late": late,
    }


def platform_health(data: MarketData, settings: Settings) -> dict[str, Any]:
    """State of what is collected, by exchange; the worst is the state of all."""
    exchanges: dict[str, Any] = {}
    for name, exchange in settings.exchanges.items():
        # Of candles alone the forming minute's close tells whether anything comes.
        kinds = [kind for kind in _KINDS if kind.channel in exchange.channels] or [LastTrade]
        channels = {kind.channel: channel_health(data, kind, name) for kind in kinds}
        exchanges[name] = {"state": _worst(channels.values()), "channels": channels}
    return {"state": _worst(exchanges.values()), "exchanges": exchanges}


def _worst(parts: Iterable[dict[str, Any]]) -> str:
    states: list[str] = [part["state"] for part in parts]
    return max(states, key=STATES.index)
