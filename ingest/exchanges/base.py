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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

import msgspec
from cryptofeed.feed import Feed
from cryptofeed.symbols import Symbols

from ingest.backoff import Gate
from ingest.clock import Clock
from ingest.connection import PING_TIMEOUT_S, FeedConnection
from ingest.lanes import ANY_DATA, ANY_FRAME, Lane, LaneStatus
from ingest.model import Event
from ingest.opening import BadMessages
from ingest.supervision import Lanes
from marketdata.errors import BadMessage
from marketdata.pairs import Market, MarketKind
from marketdata.schema import MINUTE_MS, Channel

Price = Annotated[float, msgspec.Meta(gt=0, lt=1e18)]
"""The float nearest to the exchange's decimal string."""
Milliseconds = Annotated[int, msgspec.Meta(gt=0, lt=2**53)]
Minute = Annotated[int, msgspec.Meta(gt=0, lt=2**53, multiple_of=MINUTE_MS)]
"""The open time of a minute, in milliseconds."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
DueMilliseconds = Annotated[int, msgspec.Meta(lt=2**53)]
"""When something is due; not above 0 where nothing is."""

Callback = Callable[[Event, float], Awaitable[None]]
ChannelsByKind = Mapping[MarketKind, tuple[Channel, ...]]

CANDLES = "candles"
MARKS = "marks"
TICKERS = "tickers"

SILENCE_S = 90.0
MARKS_SILENCE_S = 10.0
DOUBT_S = 10.0
"""Without marks, markets may rightly be silent; longer than this, it is looked into."""
MANY_PAIRS = 10
"""So many pairs together don't stay without a trade for `SILENCE_S`; fewer may."""

AHEAD_MS = 86_400_000
"""No clock is a day ahead of ours: an event from there would hide all that come after it."""

_NOTHING, _ABSURD = Decimal(0), Decimal(10) ** 24
_ABSURD_PRICE = 1e18

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
    ping_timeout_s: ClassVar[float | None] = PING_TIMEOUT_S
    merges: ClassVar[bool] = False
    """Whether a message may leave out what an earlier one of its connection has said."""

    @staticmethod
    def plan_lanes(
        markets: Sequence[Market],
        channels: Sequence[str],
        base_url: str,
        held: Sequence[Lane] = (),
    ) -> list[Lane]:
        """The connections that these markets and channels take; pure.

        With the lanes held now, the plan is the one that changes the fewest of them.
        """
        raise NotImplementedError

    @staticmethod
    def topics_of(market: Market, channel: Channel) -> tuple[str, ...]:
        """The topics of which any brings a market's channel, as `{lane's group}/{topic}`."""
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
        # With symbols set, the constructor makes no REST call.
        Symbols.set(self.id, symbols_of(markets), {})
        super().__init__(
            symbols=[market.pair for market in markets],
            channels=list(channels),
            callbacks={channel: callbacks[channel] for channel in channels},
            config={},
        )
        # Registered by cryptofeed, it would be kept in memory for as long as the process lives.
        atexit.unregister(self.http_conn.__del__)
        self.wanted = frozenset(channels)
        self.clock = clock
        self.bad_messages = BadMessages(self.id)
        self.refused_topics: dict[str, str] = {}
        self._http_proxy = http_proxy
        self._channels = tuple(channels)
        self._base_url = ws_url or self.ws_url
        planned = self.plan_lanes(markets, channels, self._base_url)
        self._lanes = Lanes(self, planned, gate or Gate(), clock)
        self._following = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._know(markets)
        self._index(planned)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the lanes; `shutdown` ends what this starts."""
        self._running = loop.create_task(self._lanes.run(), name=f"{self.id} lanes")

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

    @property
    def lanes(self) -> list[Lane]:
        """The planned connections."""
        return self._lanes.planned

    async def follow(self, markets: Sequence[Market]) -> None:
        """Subscribe these markets from now on instead, at the cost of the fewest connections.

        Frames of new pairs are understood at once, and those of pairs that are gone are ignored.
        Connections that carry neither aren't touched; the others are rotated, one after the other.
        Returns once all of it comes, or has been tried for a while (`supervision.CHANGE_S` a lane);
        what doesn't come yet is tried on. Cancelled on the way, the next call completes it.
        """
        async with self._following:
            planned = self.plan_lanes(markets, self._channels, self._base_url, self.lanes)
            self._know(markets)
            self._index(planned)
            await self._lanes.follow(planned)

    def channels_of(self, market: Market) -> tuple[Channel, ...]:
        """The channels that are subscribed of a market."""
        return wanted(market, self._channels, self.channels_by_kind)

    def lane_of(self, pair: str, channel: str) -> str | None:
        """The id of the lane that carries a pair's channel, None where none does."""
        return self._lane_of.get((pair, channel))

    def rotate(self, lane_id: str, cause: str) -> None:
        """Replace a lane's connection by a new one without a hole; `cause` is for the log."""
        self._lanes.rotate(lane_id, cause)

    async def wait_for_data(self) -> None:
        """Until every lane has delivered something."""
        await self._lanes.wait_for_data()

    def set_intervals(self, hours: Mapping[str, float | None]) -> None:
        """Use these funding intervals from now on, in hours by pair; they change during the day."""
        self._interval_hours.update(hours)

    def lane_statuses(self) -> list[LaneStatus]:
        """Every lane, in the order of the plan."""
        return self._lanes.statuses()

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

    def subscribed(self, connection: FeedConnection) -> bool:
        """Whether all that was asked for has been answered."""
        return True

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

    def _know(self, markets: Sequence[Market]) -> None:
        """Take these markets for ours: their symbols, ids and intervals."""
        symbols = symbols_of(markets)
        Symbols.set(self.id, symbols, {})
        self.normalized_symbol_mapping = symbols
        self.exchange_symbol_mapping = {value: pair for pair, value in symbols.items()}
        self.normalized_symbols = list(symbols)
        self.subscription = {
            self.websocket_channels[c]: list(symbols.values()) for c in self._channels
        }
        self._feed_config = {channel: list(symbols) for channel in self._channels}
        self.markets = tuple(markets)
        self._interval_hours = {market.pair: market.interval_hours for market in markets}

    def _index(self, planned: Sequence[Lane]) -> None:
        lane_of = {f"{lane.group}/{topic}": lane.id for lane in planned for topic in lane.topics}
        self._lane_of: dict[tuple[str, str], str] = {
            (market.pair, channel): lane_of[topic]
            for market in self.markets
            for channel in wanted(market, self._channels, self.channels_by_kind)
            for topic in self.topics_of(market, channel)
            if topic in lane_of
        }


def symbols_of(markets: Sequence[Market]) -> dict[str, tuple[MarketKind, str]]:
    """cryptofeed's mapping; spot and contracts may share an id, so it alone names no market."""
    return {market.pair: (market.kind, market.id) for market in markets}


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


def silence_limits(
    klines: int, marks: str | None, frames_s: float | None = None
) -> dict[str, float]:
    """How long a connection may be without each kind of data, by what is subscribed on it.

    Parameters
    ----------
    klines
        How many pairs' klines it carries.
    marks
        The kind of data that brings marks each second, None without marks.
    frames_s
        How long nothing at all may come, where the exchange answers our own pings.

    >>> silence_limits(klines=1, marks="marks"), silence_limits(klines=80, marks=None)
    ({'data': 10.0, 'marks': 10.0}, {'candles': 90.0})
    >>> silence_limits(klines=1, marks=None, frames_s=12.0)
    {'frames': 12.0}
    """
    limits = {}
    if marks is not None:
        limits = {ANY_DATA: MARKS_SILENCE_S, marks: MARKS_SILENCE_S}
    elif frames_s is not None:
        # Marks stay away sooner than answers.
        limits[ANY_FRAME] = frames_s
    if klines >= MANY_PAIRS:
        limits[CANDLES] = SILENCE_S
    return limits


def event_ms(time_ms: int, received_s: float) -> int:
    """The time of an event that has just come.

    Raises
    ------
    BadMessage
        It is none, or far ahead of ours.
    """
    if 0 < time_ms < received_s * 1000 + AHEAD_MS:
        return time_ms
    raise BadMessage(f"{time_ms} is no time of an event that came at {received_s * 1000:.0f}")


def begun(minute_ms: int, event_ms: int) -> int:
    """The start of a minute that an event states, where it may have begun.

    Raises
    ------
    BadMessage
        It begins more than a minute after the event.
    """
    if minute_ms <= event_ms + MINUTE_MS:
        return minute_ms
    raise BadMessage(f"a minute that begins at {minute_ms}, stated at {event_ms}")


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
        It is negative, not finite, or larger than any price.
    """
    value = float(text) if text else 0.0
    if not 0.0 <= value < _ABSURD_PRICE:
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
