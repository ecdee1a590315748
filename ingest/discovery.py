"""Which pairs are wanted now: a list, what others name in Redis, or the largest by volume.

Asked again and again while the service runs. A source that can't be asked changes nothing: what was
known stays, because a bot may hold positions in those pairs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence

import orjson
import redis.asyncio
import structlog
from redis.exceptions import RedisError

from ingest.clock import Clock
from ingest.exchanges.rest_base import ExchangeRest
from ingest.selection import Names, is_name, names_in, ranked, steady_top
from marketdata.errors import BadMessage, ExchangeUnavailable, MarketDataError
from marketdata.pairs import Catalogue
from marketdata.settings import PairList, RedisPairs, TopPairs

log = structlog.get_logger()

REDIS_TIMEOUT_S = 5.0
VOLUMES_TIMEOUT_S = 60.0
VOLUMES_EVERY_MS = 600_000
"""One reading of every volume costs as much weight as eight pages of candles."""
VOLUMES_AGAIN_MS = 60_000
"""When a reading that failed is tried again."""
EMPTY_FOR_MS = 120_000
"""Programs delete a key before they fill it anew: keys are empty only when they stay so."""
MOST_NAMES = 10_000
MOST_REPORTED = 1_000


class Discovery:
    """The wanted pairs of one exchange.

    Attributes
    ----------
    unusable
        How many different values in Redis were no name, or a name that no market has, so far.
    """

    def __init__(
        self,
        exchange: str,
        pairs: PairList | TopPairs | RedisPairs,
        rest: ExchangeRest,
        redis_url: str | None,
        clock: Clock,
    ) -> None:
        self.unusable = 0
        self._exchange = exchange
        self._pairs = pairs
        self._rest = rest
        self._redis_url = redis_url
        self._clock = clock
        self._known: Sequence[str] = ()
        self._reported: set[str] = set()
        self._away = False
        self._empty_since_ms: int | None = None
        self._volumes: dict[str, float] = {}
        self._next_reading_ms = 0

    async def wanted(self, catalogue: Catalogue) -> Sequence[str]:
        """The pairs to collect, as things are now; some may not be listed or traded.

        Raises
        ------
        MarketDataError
            The volumes can't be had, and none were ever known: what `RestClient.get` raises.
        """
        match self._pairs:
            case TopPairs() as top:
                self._known = await self._largest(top, catalogue)
            case RedisPairs() as sources:
                self._known = await self._named(sources, catalogue)
            case listed:
                self._known = listed
        return self._known

    async def _largest(self, wanted: TopPairs, catalogue: Catalogue) -> Sequence[str]:
        if self._clock.now_ms() >= self._next_reading_ms:
            await self._read_volumes()
        return steady_top(ranked(self._volumes, catalogue, wanted.quote), self._known, wanted.top)

    async def _read_volumes(self) -> None:
        wait_ms = VOLUMES_EVERY_MS
        try:
            async with self._clock.timeout(VOLUMES_TIMEOUT_S):
                volumes = await self._rest.volumes()
            if not any(volumes.values()):
                raise BadMessage(f"{self._exchange}: no market has a volume, expected some to")
            self._volumes = volumes
        except (MarketDataError, TimeoutError) as error:
            if not self._volumes:
                if isinstance(error, TimeoutError):
                    raise ExchangeUnavailable(
                        f"{self._exchange}: no volumes within {VOLUMES_TIMEOUT_S:g} s"
                    ) from error
                raise
            wait_ms = VOLUMES_AGAIN_MS
            log.warning("volumes_from_before", exchange=self._exchange, cause=str(error))
        self._next_reading_ms = self._clock.now_ms() + wait_ms

    async def _named(self, wanted: RedisPairs, catalogue: Catalogue) -> Sequence[str]:
        before = self._known or wanted.fallback
        if self._redis_url is None:
            return before
        client = redis.asyncio.from_url(
            self._redis_url,
            decode_responses=True,
            encoding_errors="replace",
            # Theirs is a `wait_for`, which loses cancellations before Python 3.12.
            socket_timeout=None,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                pairs = await self._first_that_has_any(client, wanted.redis, catalogue)
        except (RedisError, TimeoutError) as error:
            if not self._away:
                cause = str(error) or f"no answer within {REDIS_TIMEOUT_S:g} s"
                log.warning("pairs_from_before", exchange=self._exchange, cause=cause)
            self._away = True
            return before
        finally:
            await client.aclose()
        self._away = False
        return self._after_a_look(pairs, before, wanted.fallback)

    def _after_a_look(
        self, pairs: Sequence[str], before: Sequence[str], fallback: Sequence[str]
    ) -> Sequence[str]:
        if pairs:
            self._empty_since_ms = None
            return pairs
        now_ms = self._clock.now_ms()
        if self._empty_since_ms is None:
            self._empty_since_ms = now_ms
        return before if now_ms - self._empty_since_ms < EMPTY_FOR_MS else fallback

    async def _first_that_has_any(
        self, client: redis.asyncio.Redis, keys: Iterable[str], catalogue: Catalogue
    ) -> Sequence[str]:
        """The pairs that the first key names, of those that name any; empty when none does."""
        names = Names(catalogue)
        for key in keys:
            pairs: dict[str, None] = {}
            for text in await self._texts(client, key):
                pair = names.pair(text) if is_name(text) else None
                if pair is None:
                    self._report(key, text)
                else:
                    pairs[pair] = None
            if pairs:
                return list(pairs)
        return []

    async def _texts(self, client: redis.asyncio.Redis, key: str) -> list[str]:
        """What a key holds, in an order that the same content always has."""
        if "*" in key:
            found: list[str] = []
            async for name in client.scan_iter(match=glob(key), count=1_000):
                found.append(str(name))
                if len(found) >= MOST_NAMES:
                    break
            return sorted(set(matched(key, found)))
        kind = await client.type(key)
        match kind:
            case "set":
                members = sorted(map(str, await client.smembers(key)))
            case "list":
                members = list(map(str, await client.lrange(key, 0, MOST_NAMES - 1)))
            case "string":
                members = [str(await client.get(key) or "")]
            case "none":
                members = []
            case _:
                self._report(key, f"a {kind!s}")
                members = []
        return [name for member in members[:MOST_NAMES] for name in _parsed(member)][:MOST_NAMES]

    def _report(self, key: str, text: str) -> None:
        """Tell of a value once; what is wrong in Redis stays wrong for many looks."""
        if text in self._reported or len(self._reported) >= MOST_REPORTED:
            return
        self._reported.add(text)
        self.unusable += 1
        log.warning("unusable_name", exchange=self._exchange, key=key, found=text[:100])


def _parsed(member: str) -> Iterable[str]:
    """The names in one value: JSON where it looks like it, otherwise the text itself."""
    if member[:1] not in ("[", "{", '"'):
        return [member]
    try:
        return names_in(orjson.loads(member))
    except orjson.JSONDecodeError:
        return [member]


def glob(key: str) -> str:
    r"""A key with `*` as Redis' SCAN takes it: nothing else in it is special.

    >>> print(glob("bot[1]:position:*"))
    bot\[1\]:position:*
    """
    return re.sub(r"([\[\]?\\^])", r"\\\1", key)


def matched(key: str, names: Iterable[str]) -> Iterator[str]:
    """What stands for the first `*` in the names of keys.

    >>> list(matched("quantum:position:*", ["quantum:position:BTCUSDT", "quantum:position:"]))
    ['BTCUSDT']
    """
    pattern = re.compile(re.escape(key).replace(r"\*", "(.+)"), re.DOTALL)
    for name in names:
        if found := pattern.fullmatch(name):
            yield found[1]
