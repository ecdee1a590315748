"""What all feeds share: a cryptofeed Feed whose connections are supervised by us.

A feed subclasses cryptofeed's class for its exchange, is added to a cryptofeed `FeedHandler` like
any other, and hands its events to cryptofeed callbacks, by channel: `candles`, `funding`,
`mark_price`, `last_price`. Its symbols are ccxt unified pairs, from our own catalogue: constructing
it asks the exchange nothing.
"""

from __future__ import annotations

import asyncio
import atexit
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

import msgspec
from cryptofeed.feed import Feed
from cryptofeed.symbols import Symbols

from ingest.backoff import Gate
from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.model import Event
from ingest.supervision import BadMessages, Lane, LaneStatus, LaneSupervisor
from marketdata.errors import BadMessage
from marketdata.pairs import Market, MarketKind
from marketdata.schema import MINUTE_MS, Channel

Price = Annotated[float, msgspec.Meta(gt=0, lt=1e18)]
"""The float nearest to the exchange's decimal string."""
Milliseconds = Annotated[int, msgspec.Meta(gt=0, lt=2**53)]
Minute = Annotated[int, msgspec.Meta(gt=0, lt=2**53, multiple_of=MINUTE_MS)]
"""The open time of a minute, in milliseconds."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]

Callback = Callable[[Event, float], Awaitable[None]]
ChannelsByKind = Mapping[MarketKind, tuple[Channel, ...]]

CANDLES = "candles"
MARKS = "marks"
TICKERS = "tickers"

SILENCE_S = 90.0
MARKS_SILENCE_S = 10.0
MANY_PAIRS = 10
"""So many pairs together don't stay without a trade for `SILENCE_S`; fewer may."""

_NOTHING, _ABSURD = Decimal(0), Decimal(10) ** 24

PARSE_ERRORS = (BadMessage, ValueError, ArithmeticError)
"""What decoding a message and making events of it can raise; msgspec's errors are ValueErrors."""


class SupervisedFeed(Feed):  # type: ignore[misc]
    """A cryptofeed Feed without cryptofeed's connection handler.

    Parameters
    ----------
    markets
        What to subscribe.
    channels
        Of the exchange's list; one that a market's kind doesn't have is left out for it.
    callbacks
        One for each of the channels.
    gate
        Shared by the feeds of the exchange, where there is more than one at a time.
    ws_url
        Replaces scheme, host and port of the exchange's own address; `ws://` is accepted.
    http_proxy
        For the WebSocket connections; without it none is used, whatever the environment says.

    Attributes
    ----------
    refused_topics
        Topics that the exchange refuses to subscribe, and its words.
    """

    ws_url: ClassVar[str]
    channels_by_kind: ClassVar[ChannelsByKind]
    ping_timeout_s: ClassVar[float | None] = 20.0

    @staticmethod
    def plan_lanes(markets: Sequence[Market], channels: Sequence[str], base_url: str) -> list[Lane]:
        """The connections that these markets and channels take; pure."""
        raise NotImplementedError

    def __init__(
        self,
        markets: Sequence[Market],
        channels: Sequence[Channel],
        callbacks: Mapping[Channel, Callback],
        clock: Clock,
        *,
        gate: Gate | None = None,
        ws_url: str | None = None,
        http_proxy: str | None = None,
    ) -> None:
        # With symbols set, the constructor makes no REST call. Spot and contracts may share an id.
        Symbols.set(self.id, {market.pair: (market.kind, market.id) for market in markets}, {})
        super().__init__(
            symbols=[market.pair for market in markets],
            channels=list(channels),
            callbacks={channel: callbacks[channel] for channel in channels},
            config={},
        )
        # Registered by cryptofeed, it would be kept in memory for as long as the process lives.
        atexit.unregister(self.http_conn.__del__)
        self.markets = tuple(markets)
        self.wanted = frozenset(channels)
        self.clock = clock
        self.bad_messages = BadMessages(self.id)
        self.refused_topics: dict[str, str] = {}
        self.lanes = self.plan_lanes(markets, channels, ws_url or self.ws_url)
        self._http_proxy = http_proxy
        self._interval_hours = {market.pair: market.interval_hours for market in markets}
        gate = gate or Gate()
        self._supervisors = [LaneSupervisor(self, lane, gate, clock) for lane in self.lanes]
        self._running: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the lanes; `shutdown` ends what this starts."""
        self._running = loop.create_task(self._run_lanes(), name=f"{self.id} lanes")

    def stop(self) -> None:
        """Begin to close; `shutdown` waits for it."""
        if self._running is not None:
            self._running.cancel()

    async def shutdown(self) -> None:
        """Close every connection and end every task."""
        self.stop()
        if self._running is not None:
            await asyncio.wait({self._running})
            if not self._running.cancelled():
                self._running.result()  # it only ends by itself where there is a defect
        await self.http_conn.close()

    async def wait_for_data(self) -> None:
        """Until every lane has delivered something."""
        for supervisor in self._supervisors:
            await supervisor.delivering.wait()

    def set_intervals(self, hours: Mapping[str, float | None]) -> None:
        """Use these funding intervals from now on, in hours by pair; they change during the day."""
        self._interval_hours.update(hours)

    def lane_statuses(self) -> list[LaneStatus]:
        """Every lane, in the order of the plan."""
        return [supervisor.status() for supervisor in self._supervisors]

    @property
    def dropped(self) -> dict[str, int]:
        """Messages that could not be used, by kind, and how many topics are refused."""
        counts = {f"bad_message.{kind}": n for kind, n in self.bad_messages.counts.items()}
        if self.refused_topics:
            counts["refused_topics"] = len(self.refused_topics)
        return counts

    def connection(self, lane: Lane) -> FeedConnection:
        return FeedConnection(
            self.address_of(lane),
            f"{self.id}.ws.{lane.id}",
            self.clock,
            topics=lane.topics,
            http_proxy=self._http_proxy,
            ping_timeout_s=self.ping_timeout_s,
        )

    @staticmethod
    def address_of(lane: Lane) -> str:
        """Where the lane connects to."""
        return lane.url

    async def subscribe(self, connection: FeedConnection) -> None:
        """Ask for the lane's topics; nothing to do where the address names them."""

    async def keep_alive(self, connection: FeedConnection) -> None:
        """Protocol pings are enough, unless an exchange wants more."""

    async def message_handler(
        self, msg: bytes | str, conn: FeedConnection, timestamp: float
    ) -> str | None:
        """Emit what one message says.

        Returns the kind of data that it was (`candles`, `marks`, `tickers`), None for what isn't
        data. Whatever it raises is the message's fault, not the connection's.
        """
        raise NotImplementedError

    def interval_hours(self, market: Market) -> float | None:
        """Hours between two fundings of a market, as far as is known now."""
        return self._interval_hours[market.pair]

    async def _run_lanes(self) -> None:
        async with asyncio.TaskGroup() as lanes:
            for supervisor in self._supervisors:
                lanes.create_task(supervisor.run(), name=f"{self.id} {supervisor.lane.id}")


def wanted(market: Market, channels: Sequence[str], by_kind: ChannelsByKind) -> tuple[Channel, ...]:
    """The channels that are asked for and that a market of this kind has."""
    return tuple(channel for channel in by_kind[market.kind] if channel in channels)


def endpoint(base_url: str, path: str) -> str:
    """A path on the host of `base_url`.

    >>> endpoint("ws://127.0.0.1:8080/", "/v5/public/spot")
    'ws://127.0.0.1:8080/v5/public/spot'
    """
    base = urlsplit(base_url)
    return f"{base.scheme}://{base.netloc}{path}"


def pack(
    topics: Iterable[str], cost: Callable[[str], int], room: int, most: int
) -> list[tuple[str, ...]]:
    """Fill topics into connections, in order: at most `most` each, and `room` in cost.

    >>> pack(["aa", "b", "ccc", "d"], cost=len, room=4, most=2)
    [('aa', 'b'), ('ccc', 'd')]
    """
    packed: list[list[str]] = []
    left = 0
    for topic in topics:
        if not packed or cost(topic) > left or len(packed[-1]) == most:
            packed.append([])
            left = room
        packed[-1].append(topic)
        left -= cost(topic)
    return [tuple(some) for some in packed]


def silence_limits(klines: int, marks: str | None) -> dict[str, float]:
    """How long a connection may be without each kind of data, by what is subscribed on it.

    Parameters
    ----------
    klines
        How many pairs' klines it carries.
    marks
        The kind of data that brings marks each second, None without marks.

    >>> silence_limits(klines=1, marks="marks"), silence_limits(klines=80, marks=None)
    ({'data': 10.0, 'marks': 10.0}, {'data': 90.0, 'candles': 90.0})
    """
    limits = {"data": SILENCE_S if marks is None else MARKS_SILENCE_S}
    if marks is not None:
        limits[marks] = MARKS_SILENCE_S
    if klines >= MANY_PAIRS:
        limits[CANDLES] = SILENCE_S
    return limits


def volume(value: Decimal) -> Decimal:
    """A volume, exactly as it was written.

    Raises
    ------
    BadMessage
        It is negative, not finite, or larger than any market's.
    """
    if value.is_finite() and _NOTHING <= value < _ABSURD:
        return value
    raise BadMessage(f"{value} is no volume")


def optional_price(text: str | None) -> float | None:
    """A price that may be missing, empty or zero, which mean the same: there is none.

    Raises
    ------
    BadMessage
        It is negative or not finite.
    """
    value = float(text) if text else 0.0
    if not 0.0 <= value < math.inf:
        raise BadMessage(f"{text!r} is no price")
    return value or None


def rate(text: str) -> float:
    """A funding rate: a fraction per interval, of either sign.

    Raises
    ------
    BadMessage
        It is not finite.
    """
    value = float(text)
    if not math.isfinite(value):
        raise BadMessage(f"{text!r} is no rate")
    return value
