"""`ingest replay`: a capture's bytes through the whole pipeline, at the times of their arrival.

The same feed, inbox, pipeline, outbox and sink as live; only the sockets are missing and the clock
shows the time at which each message came. The outbox of a replay lies beside its store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ingest.backends import InboxBackend
from ingest.budget import Budgets
from ingest.capture import Capture, open_captures
from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.exchanges import EXCHANGES
from ingest.exchanges.base import SupervisedFeed
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.sinks.sqlite import SqliteSink
from ingest.ticks import Thinner
from marketdata.errors import BadMessage, ConfigError, Fault
from marketdata.pairs import Catalogue, Market

STEP_MS = 1_000
"""How much of the capture's time is committed at once."""
TICKS_EVERY_MS = 1_000
PARCEL_ROWS = 5_000
OUTBOX_BYTES = 2**32


class ReplayClock(Clock):
    """A clock that shows what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.time_ms = 0

    def now_ms(self) -> int:
        return self.time_ms


async def replay_capture(folder: Path, store: Path) -> dict[str, Mapping[str, int]]:
    """Replay every exchange of a capture into a SQLite store; counts by exchange.

    Raises
    ------
    ConfigError
        The folder holds no capture of an exchange that is known here.
    """
    captures = open_captures(folder, EXCHANGES)
    sink = SqliteSink(store)
    outbox = await Outbox.open(store.with_name(f"{store.name}.outbox"), OUTBOX_BYTES)
    try:
        return {capture.exchange: await _replay(capture, outbox, sink) for capture in captures}
    finally:
        await outbox.close()
        await sink.close()


async def _replay(capture: Capture, outbox: Outbox, sink: SqliteSink) -> Mapping[str, int]:
    clock = ReplayClock()
    inbox, hot = Inbox(), HotState()
    pipeline = Pipeline(inbox, outbox, hot, Thinner(TICKS_EVERY_MS), clock)
    changed = hot.subscribe()
    feed = _feed(capture, inbox, clock)
    connections: dict[str, FeedConnection] = {}
    counts: Counter[str] = Counter()
    committed_ms = 0
    for frame in capture.frames():
        clock.time_ms = frame.received_ms
        if frame.text is None or frame.connection not in connections:
            # What a connection has merged so far ends with it.
            connections[frame.connection] = FeedConnection(frame.url, frame.connection, clock)
        if frame.text is None:
            continue
        counts["messages"] += 1
        connection = connections[frame.connection]
        try:
            await feed.message_handler(frame.text, connection, frame.received_ms / 1000)
        except Exception as error:  # as live: a message costs only itself
            feed.bad_messages.add(type(error).__name__, frame.text, error)
            counts["unused"] += 1
        if frame.received_ms - committed_ms >= STEP_MS:
            await pipeline.step()
            committed_ms = frame.received_ms
    await pipeline.finish()
    await _deliver(outbox, sink)
    await sink.update(hot.take(changed))
    await feed.shutdown()
    return counts + pipeline.counts


def _feed(capture: Capture, inbox: Inbox, clock: Clock) -> SupervisedFeed:
    adapter = EXCHANGES[capture.exchange]
    rest = adapter.rest(Budgets(), clock, None, None)
    catalogue: Catalogue | None = None
    for answer in capture.answers.values():
        if isinstance(answer, dict):
            try:
                catalogue = rest.markets(answer)
            except BadMessage:
                continue  # something else that REST said
    if catalogue is None:
        fault = Fault(
            f"{capture.exchange}.0", None, "no metadata", "the exchange's list of markets"
        )
        raise ConfigError("the capture", [fault])
    markets: list[Market] = list(catalogue.markets)
    backend = InboxBackend(inbox)
    return adapter.feed(markets, adapter.channels, dict.fromkeys(adapter.channels, backend), clock)


async def _deliver(outbox: Outbox, sink: SqliteSink) -> None:
    while (parcel := await outbox.take(PARCEL_ROWS)) is not None:
        await outbox.settle(parcel, await sink.write(parcel.batch))
