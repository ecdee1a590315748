"""What a service would have made of a replayed incident: the same states, the same ledger.

The state machines are those of the live service. Only REST is missing, so gaps stay open that live
has repaired.
"""

from __future__ import annotations

from ingest.exchanges.base import SupervisedFeed
from ingest.freshness import Freshness
from ingest.judge import Judge
from ingest.minutes import MinuteWatch
from ingest.model import Event
from ingest.pipeline import Pipeline
from marketdata.schema import MINUTE_MS


class Incident:
    """Judges a replay second by second; an `Observer` of `ingest.replaying`."""

    def __init__(self, exchange: str, feed: SupervisedFeed, pipeline: Pipeline) -> None:
        self.freshness = Freshness(feed.lane_of)
        self._exchange = exchange
        self._feed = feed
        self._pipeline = pipeline
        self._judge = Judge(exchange, self.freshness)
        self._watch = MinuteWatch(exchange, pipeline.books, self.freshness)
        self._open: dict[str, set[str]] = {}
        self._started_ms = 0
        pipeline.observers[exchange] = self._observe

    async def on_second(self, now_ms: int) -> None:
        """A second of the capture's time is over."""
        if not self._started_ms:
            self._begin(now_ms)
        for lane, connections in self._open.items():
            self.freshness.connection(lane, up=bool(connections), now_ms=now_ms)
        self._judge.look(now_ms)
        for pair in self.freshness.channels():
            self._watch.look(pair, now_ms)
        gaps = self._judge.outages.rows() + self._watch.ledger.rows()
        await self._pipeline.put_rows({"gap": gaps})

    def on_open(self, connection: str) -> None:
        """A connection is open now."""
        self._open.setdefault(_lane(connection), set()).add(connection)

    def on_close(self, connection: str, cause: str) -> None:
        """A connection ended."""
        self._open.setdefault(_lane(connection), set()).discard(connection)

    def _begin(self, now_ms: int) -> None:
        self._started_ms = now_ms
        channels = {market.pair: self._feed.channels_of(market) for market in self._feed.markets}
        self.freshness.follow(channels, now_ms)
        for pair in channels:
            self._watch.follow(pair, now_ms - now_ms % MINUTE_MS)

    def _observe(self, event: Event, received_ms: int) -> None:
        self._judge.observe(event, received_ms)


def _lane(connection: str) -> str:
    """The lane of a connection's name in a capture.

    >>> _lane("BYBIT.ws.linear-1~2")
    'linear-1'
    """
    return connection.partition(".ws.")[2].partition("~")[0]
