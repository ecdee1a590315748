"""A cryptofeed WebSocket connection that somebody else supervises.

It differs from cryptofeed's own in what supervision needs: `ws://` is accepted, a proxy is used,
reading is bounded, the end of a connection is an error that says how it ended, and nothing of it
outlives its owner. cryptofeed's raw capture (`Connection.raw_data_callback`) works as ever; one
that has a method `told` also learns when a connection is open and how it ended.

Proxies come from the configuration only. The environment's `HTTPS_PROXY` is not looked at: which
address an exchange sees is a decision of the operator, since bans hit addresses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import ClassVar

from cryptofeed import exceptions as cryptofeed_errors
from cryptofeed.connection import WSAsyncConn
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxy,
    InvalidStatus,
    WebSocketException,
)

from ingest.backoff import REFUSED_S, retry_after_s
from ingest.clock import Clock
from marketdata.errors import ExchangeUnavailable, RateLimited

HANDSHAKE_S = 10.0
CLOSE_S = 2.0
PING_INTERVAL_S = 4.0
PING_TIMEOUT_S = 7.0
"""A peer that is gone without a word is noticed after both, and `CLOSE_S`, at the latest."""
MAX_MESSAGE_BYTES = 4 * 2**20
"""Binance's all-market frame has some 130 KiB."""
MAX_QUEUED_MESSAGES = 256
"""Beyond it nothing more is read from the socket, and TCP slows the exchange down."""
REFUSALS = (403, 418, 429)


class FeedConnection(WSAsyncConn):  # type: ignore[misc]
    """One opening of one lane; use it as `async with connection.connect()`.

    Parameters
    ----------
    conn_id
        Names the connection in logs and its file in a raw capture, so it stays the same from one
        opening to the next: `BYBIT.ws.linear-1`. While another opening of it lasts: `…-1~2`.
    topics
        What is subscribed on it; cryptofeed calls it the subscription.
    ping_timeout_s
        A peer that leaves a protocol ping unanswered for so long is gone; None where the exchange
        isn't known to answer them. Seconds of the world, as they judge the network.

    Attributes
    ----------
    notice
        Why the exchange asks to be left, once it has; the supervisor then plans a reconnect.
    """

    _names: ClassVar[set[str]] = set()

    def __init__(
        self,
        address: str,
        conn_id: str,
        clock: Clock,
        *,
        topics: Sequence[str] = (),
        http_proxy: str | None = None,
        ping_timeout_s: float | None = PING_TIMEOUT_S,
    ) -> None:
        # Without cryptofeed's constructors: they refuse ws://, and keep every connection ever made
        # in memory (atexit).
        self.id = conn_id
        self.address = address
        self.subscription = topics
        self.authentication = None
        self.conn: ClientConnection | None = None
        self.sent = self.received = 0
        self.last_message: float | None = None
        self.notice: str | None = None
        self._told_closed = True
        self._cause = "by us"
        self._clock = clock
        self.ws_kwargs = {
            "compression": None,
            "proxy": http_proxy,
            "open_timeout": None,
            "close_timeout": CLOSE_S,
            "ping_interval": PING_INTERVAL_S,
            "ping_timeout": ping_timeout_s,
            "max_size": MAX_MESSAGE_BYTES,
            "max_queue": MAX_QUEUED_MESSAGES,
        }

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[FeedConnection]:
        """Open it for as long as the block lasts; errors as `receive`."""
        with self._name_of_its_own():
            self._told_closed = False
            try:
                async with super().connect():
                    self._tell("opened")
                    yield self
            except ExchangeUnavailable as error:
                self._cause = str(error)
                raise
            finally:
                self.tell_closed(self._cause)

    def tell_closed(self, cause: str) -> None:
        """Tell a raw capture that this is the connection's end, and why; the first word counts."""
        if not self._told_closed:
            self._told_closed = True
            self._tell(f"closed: {cause}")

    async def receive(self) -> tuple[bytes, float]:
        """The next message, and when it came: seconds of our clock.

        Raises
        ------
        ExchangeUnavailable
            The connection has ended, in whatever way: a polite close is no better than a reset.
        """
        socket = self.conn
        if socket is None:
            raise ExchangeUnavailable(f"{self.id}: closed by us")
        try:
            message: bytes = await socket.recv(decode=False)
        except ConnectionClosed as closed:
            if self.conn is socket:
                self._cause = str(closed)
            raise ExchangeUnavailable(f"{self.id}: {closed}") from closed
        self.received += 1
        self.last_message = received_s = self._clock.now_ms() / 1000
        if self.raw_data_callback:
            await self.raw_data_callback(message.decode(errors="replace"), received_s, self.id)
        return message, received_s

    async def write(self, data: str) -> None:
        """Send a message; errors as `receive`."""
        try:
            await super().write(data)
        except (ConnectionClosed, cryptofeed_errors.ConnectionClosed) as closed:
            raise ExchangeUnavailable(f"{self.id}: {str(closed) or 'closed by us'}") from closed

    async def close(self) -> None:
        """Close politely, or abort when the peer doesn't answer or the caller is cancelled."""
        socket, self.conn = self.conn, None
        if socket is None:
            return
        try:
            await socket.close()
        finally:
            socket.transport.abort()

    def _tell(self, what: str) -> None:
        told = getattr(self.raw_data_callback, "told", None)
        if told is not None:
            told(what, self._clock.now_ms() / 1000, self.id, self.address)

    @contextmanager
    def _name_of_its_own(self) -> Iterator[None]:
        """Two openings of a lane, one about to replace the other, are told apart by name."""
        name, number = self.id, 1
        while name in self._names:
            number += 1
            name = f"{self.id}~{number}"
        self._names.add(name)
        self.id = name
        try:
            yield
        finally:
            self._names.remove(name)

    async def _open(self) -> None:
        try:
            async with self._clock.timeout(HANDSHAKE_S):
                await super()._open()
        except InvalidStatus as refusal:
            raise self._refused(refusal) from refusal
        except InvalidProxy:
            # The exception's text has the address of the proxy, which may hold a password.
            raise ExchangeUnavailable(f"{self.id}: http_proxy is no address of a proxy") from None
        except TimeoutError as error:
            text = f"{self.id}: no handshake within {HANDSHAKE_S:g} s"
            raise ExchangeUnavailable(text) from error
        except (OSError, EOFError, WebSocketException) as error:
            raise ExchangeUnavailable(f"{self.id}: no connection: {error}") from error

    def _refused(self, refusal: InvalidStatus) -> ExchangeUnavailable:
        status = refusal.response.status_code
        asked = refusal.response.headers.get_all("Retry-After")
        wait_s = retry_after_s(asked[0] if asked else None, self._clock.now_ms())
        text = f"{self.id}: handshake answered with HTTP {status}, expected 101"
        if status in REFUSALS:
            return RateLimited(text, retry_after_s=max(REFUSED_S, wait_s or 0.0))
        return ExchangeUnavailable(text, retry_after_s=wait_s)
