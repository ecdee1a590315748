"""One HTTP client per exchange address: asks within the budget, and every failure is a typed error.

Nothing is retried here: whoever asks decides by the error's type. After 403, 418 and 429 the
address is left alone by everyone who shares its budgets.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
import orjson
import structlog
from yarl import URL

from ingest.backoff import LONGEST_S, retry_after_s
from ingest.budget import Budgets, Limit
from ingest.clock import Clock
from marketdata.errors import (
    ExchangeRefused,
    ExchangeUnavailable,
    MarketDataError,
    RateLimited,
)

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
TOTAL_TIMEOUT_S = 15.0
CONNECTIONS = 8
_RATE_LIMITED = frozenset({403, 418, 429})
_WORDS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer; times are ours, around the whole exchange of request and answer."""

    body: object
    headers: Mapping[str, str]
    sent_ms: int
    received_ms: int


def _accepts(_: Answer) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is an exchange's own in its REST.

    `limits`: its limits, the one that calls count against unless they name another first.
    `ban_s`: how long to stay away at least after 403, 418 or 429.
    `used_header`: where it tells the weight used by our address in the first limit's window.
    `refusal`: the error that an answer with HTTP 200 carries, if any.
    """

    exchange: str
    limits: tuple[Limit, ...]
    ban_s: float = 120.0
    used_header: str | None = None
    refusal: Callable[[Answer], MarketDataError | None] = _accepts


class RestClient:
    """GET requests to one exchange address.

    Every call waits for its turn in the budget, in the order of asking; a caller may cancel at any
    time, and pays for what was already sent only. Use as an async context manager, or `close()`.

    Attributes
    ----------
    requests, weight, refused, failed
        Counters by path: what was sent, its weight, and how many of it the exchange refused (4xx
        or an error code) or didn't answer (unreachable, timed out, 5xx, not JSON).
    answered_ms
        When the last answer came, whatever it said.

    Parameters
    ----------
    base_url
        Scheme, host and port; a path in it is not used.
    proxy
        `http://…` to go out through; it has a budget of its own, for limits count by address.
    """

    def __init__(
        self,
        base_url: str,
        dialect: Dialect,
        budgets: Budgets,
        clock: Clock,
        proxy: str | None = None,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        total_timeout_s: float = TOTAL_TIMEOUT_S,
    ) -> None:
        self.requests: Counter[str] = Counter()
        self.weight: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.answered_ms = 0
        self._origin = URL(base_url).origin()
        self._dialect = dialect
        self._clock = clock
        self._proxy = URL(proxy) if proxy is not None else None
        self._budgets = budgets.at(self.address, dialect.limits)
        self._connections = asyncio.Semaphore(CONNECTIONS)
        self._refused_last = False
        self._ahead = asyncio.Lock()
        self._turns = {name: asyncio.Lock() for name in self._budgets}
        self._timeout = aiohttp.ClientTimeout(total=total_timeout_s, sock_connect=connect_timeout_s)
        self._session: aiohttp.ClientSession | None = None

    @property
    def address(self) -> str:
        """Where requests go and which way: what an exchange's limit counts by."""
        if self._proxy is None:
            return str(self._origin)
        return f"{self._origin} via {self._proxy.host}:{self._proxy.port}"

    @property
    def is_held(self) -> bool:
        """Whether the exchange has told us to stay away for now."""
        now_ms = self._clock.now_ms()
        return any(now_ms < budget.held_until_ms for budget in self._budgets.values())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests under way fail with `ExchangeUnavailable`."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(
        self,
        path: str,
        params: Mapping[str, str | int] | None = None,
        *,
        weight: int = 1,
        limit: str | None = None,
    ) -> Answer:
        """Ask when the budget allows it; `limit` names the one that counts, if not the first.

        Raises
        ------
        RateLimited
            403, 418, 429 or the exchange's own words for it; `retry_after_s` says when the address
            may be asked again, and until then every call waits.
        ExchangeRefused
            The exchange won't ever answer this: any other 4xx, or its own error code.
        ExchangeUnavailable
            No connection, no answer in time, 5xx, or something that is not JSON.
        """
        name = limit or self._dialect.limits[0].name
        # A connection first: what the budget grants is sent at once, and counted when we think.
        async with self._connections:
            if not self._refused_last:
                await self._wait_for_turn(name, weight)
            if not self._refused_last:
                return await self._counted(path, params or {}, weight)
            # Once the wait is over one goes ahead: all of them at once might meet another refusal.
            async with self._ahead:
                await self._wait_for_turn(name, weight)
                return await self._counted(path, params or {}, weight)

    async def _counted(self, path: str, params: Mapping[str, str | int], weight: int) -> Answer:
        self.requests[path] += 1
        self.weight[path] += weight
        try:
            answer = await self._ask(path, params)
        except RateLimited as limited:
            self.refused[path] += 1
            self._refused_last = True
            self._hold(limited)
            raise
        except ExchangeRefused:
            self.refused[path] += 1
            self._refused_last = False
            raise
        except ExchangeUnavailable:
            self.failed[path] += 1
            raise
        self._refused_last = False
        return answer

    async def _wait_for_turn(self, limit: str, weight: int) -> None:
        budget = self._budgets[limit]
        async with self._turns[limit]:
            while wait_ms := budget.reserve(weight, self._clock.now_ms()):
                await self._clock.sleep(wait_ms / 1000)

    async def _ask(self, path: str, params: Mapping[str, str | int]) -> Answer:
        what = f"{self._dialect.exchange}: GET {path}"
        url = self._origin.with_path(path).with_query(params)
        sent_ms = self._clock.now_ms()
        try:
            async with self._open_session().get(
                url, proxy=self._proxy, allow_redirects=False
            ) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ExchangeUnavailable(
                f"{what} at {self.address} failed: {_cause(error)}; "
                f"expected JSON; worth another try later"
            ) from None  # what aiohttp says of a proxy holds its password
        received_ms = self.answered_ms = self._clock.now_ms()
        self._observe(response.headers, sent_ms)
        if response.status != 200:
            raise self._http_error(what, response.status, response.headers, raw, received_ms)
        try:
            answer = Answer(orjson.loads(raw), response.headers, sent_ms, received_ms)
        except orjson.JSONDecodeError as error:
            raise ExchangeUnavailable(
                f"{what} answered 200 with {response.content_type}, expected JSON: {_words(raw)}; "
                f"worth another try later"
            ) from error
        refusal = self._dialect.refusal(answer)
        if refusal is not None:
            raise refusal
        return answer

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self._session

    def _observe(self, headers: Mapping[str, str], sent_ms: int) -> None:
        # As of sending: what an answer says of the minute before tells nothing of the new one.
        used = headers.get(self._dialect.used_header or "")
        if used is not None and used.isdecimal():
            self._budgets[self._dialect.limits[0].name].observe(int(used), sent_ms)

    def _http_error(
        self, what: str, status: int, headers: Mapping[str, str], raw: bytes, now_ms: int
    ) -> MarketDataError:
        if status in _RATE_LIMITED:
            wait_s = max(
                self._dialect.ban_s,
                retry_after_s(headers.get("Retry-After"), now_ms) or 0.0,
                _banned_s(raw, now_ms),
            )
            return RateLimited(
                f"{what} answered {status}: {_words(raw)}; "
                f"{self.address} is left alone for {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        if 400 <= status < 500 and status != 408:
            return ExchangeRefused(f"{what} is refused with {status}: {_words(raw)}")
        return ExchangeUnavailable(
            f"{what} answered {status}, expected 200: {_words(raw)}; worth another try later"
        )

    def _hold(self, limited: RateLimited) -> None:
        wait_s = limited.retry_after_s or self._dialect.ban_s
        until_ms = self._clock.now_ms() + int(wait_s * 1000)
        for budget in self._budgets.values():
            budget.hold(until_ms)
        log.warning("rest_rate_limited", exchange=self._dialect.exchange, wait_s=wait_s)


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{error.status} {error.message}"
    return str(error) or type(error).__name__


def _banned_s(raw: bytes, now_ms: int) -> float:
    # Binance's 418 comes without Retry-After too; then only its text says how long (-1003).
    match = re.search(rb"banned until (\d{13})\b", raw)
    return min((int(match[1]) - now_ms) / 1000, LONGEST_S) if match else 0.0


def _words(raw: bytes) -> str:
    """What the other side said, short enough for a message."""
    text = " ".join(raw.decode("utf-8", "replace").split())
    if text.startswith("<"):
        return "an HTML page"
    return text[:_WORDS] or "nothing"
