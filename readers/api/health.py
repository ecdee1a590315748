"""Whether the data behind the API is fresh: an exchange is live while any of its values is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from marketdata.settings import Settings
from readers.client import MarketData
from readers.values import Funding, LastTrade, Mark, Reading

_KINDS: tuple[type[Reading], ...] = (Mark, Funding, LastTrade)


def channel_health(readings: Collection[Reading]) -> dict[str, Any]:
    """State of one channel of an exchange: `live` while its newest value is fresh, else `late`.

    `pairs` have a value, `fresh` of them one within its deadline, `late` has the others' ages.
    """
    late = {
        reading.pair: reading.age_ms for reading in readings if reading.age_ms > reading.deadline_ms
    }
    return {
        "state": "live" if len(late) < len(readings) else "late",
        "age_ms": min((reading.age_ms for reading in readings), default=None),
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
        channels = {
            kind.channel: channel_health(data.readings(kind, name).values()) for kind in kinds
        }
        exchanges[name] = {"state": _worst(channels.values()), "channels": channels}
    return {"state": _worst(exchanges.values()), "exchanges": exchanges}


def _worst(parts: Iterable[dict[str, Any]]) -> str:
    return "live" if all(part["state"] == "live" for part in parts) else "late"
