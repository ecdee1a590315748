"""The markets that a service keeps beside its outbox, for commands that ask no exchange."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.exchanges import EXCHANGES
from marketdata.errors import BadMessage
from marketdata.pairs import Market
from marketdata.settings import Settings


def kept_markets(settings: Settings, exchange: str) -> Mapping[str, Market] | None:
    """An exchange's markets by pair as the service last knew them; None where it kept none."""
    path = settings.outbox.path.parent / "markets" / f"{exchange}.json"
    rest = EXCHANGES[exchange].rest(Budgets(), Clock(), None, None)
    try:
        kept = orjson.loads(path.read_bytes())
        catalogue = rest.markets(kept["metadata"])
        return catalogue.with_intervals(kept["hours"] or {}, rest.interval_hours).by_pair
    except (OSError, ValueError, KeyError, TypeError, BadMessage):
        return None
