"""Which markets are collected: what the configuration asks for, held against what is listed.

What the exchange doesn't list or doesn't trade is reported and left out, and the others run; when
nothing is left, the configuration is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson
import redis.asyncio
import structlog
from redis.exceptions import RedisError

from ingest.exchanges.rest_base import ExchangeRest
from marketdata.errors import ConfigError, Fault, UnknownPair
from marketdata.pairs import Catalogue, Market
from marketdata.settings import PairList, RedisPairs, TopPairs

log = structlog.get_logger()

REDIS_TIMEOUT_S = 5.0
MAX_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Selection:
    """The markets to collect by pair, and why others were left out."""

    markets: Mapping[str, Market]
    left_out: Sequence[str]


def select(exchange: str, wanted: Iterable[str], catalogue: Catalogue) -> Selection:
    """The listed, traded markets among the wanted pairs, in the order wanted.

    Raises
    ------
    ConfigError
        None of the pairs is listed.
    """
    markets: dict[str, Market] = {}
    left_out: list[str] = []
    for pair in dict.fromkeys(wanted):
        try:
            market = catalogue.find(pair)
        except UnknownPair as error:
            left_out.append(str(error))
            continue
        if market.active:
            markets[pair] = market
        else:
            left_out.append(f"{exchange} lists {pair} but doesn't trade it now")
    if not markets:
        found = f"{len(left_out)} pairs, none of which {exchange} lists and trades"
        near = "; ".join(left_out[:3])
        key = f"exchanges.{exchange}.pairs"
        raise ConfigError("the configuration", [Fault(key, None, found, near or "listed pairs")])
    return Selection(markets, left_out)


async def resolve(
    wanted: PairList | TopPairs | RedisPairs,
    catalogue: Catalogue,
    rest: ExchangeRest,
    redis_url: str | None,
) -> Sequence[str]:
    """The names of the wanted pairs, whichever way the configuration gives them."""
    if isinstance(wanted, TopPairs):
        return largest(await rest.volumes(), catalogue, wanted.quote, wanted.top)
    if isinstance(wanted, RedisPairs):
        return await _pairs_in_redis(wanted, catalogue, redis_url)
    return wanted


def largest(volumes: Mapping[str, float], catalogue: Catalogue, quote: str, top: int) -> list[str]:
    """The perpetuals of a quote currency with the largest 24 h quote volume.

    Parameters
    ----------
    volumes
        Exchange id → 24 h volume in quote units.
    """
    traded = [
        market
        for market in catalogue.markets
        if market.kind == "perpetual" and market.quote == quote and market.active
    ]
    traded.sort(key=lambda market: (-volumes.get(market.id, 0.0), market.pair))
    return [market.pair for market in traded[:top]]


async def _pairs_in_redis(
    wanted: RedisPairs, catalogue: Catalogue, redis_url: str | None
) -> Sequence[str]:
    """The pairs under the first key that has any; the fallback when Redis has none or is away."""
    if redis_url is None:
        return wanted.fallback
    client = redis.asyncio.from_url(
        redis_url,
        decode_responses=True,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
    try:
        for key in wanted.redis:
            names = await _names(client, key)
            if names:
                return [_pair_of(name, catalogue) for name in names]
    except RedisError as error:
        log.warning("pairs_from_fallback", cause=str(error))
    finally:
        await client.aclose()
    return wanted.fallback


async def _names(client: redis.asyncio.Redis, key: str) -> list[str]:
    if "*" in key:
        prefix = re.escape(key).replace(r"\*", "(.+)")
        found = [name async for name in client.scan_iter(match=key, count=MAX_KEYS)]
        matches = (re.fullmatch(prefix, name) for name in sorted(found))
        return [match[1] for match in matches if match]
    kind = await client.type(key)
    if kind == "set":
        return sorted(map(str, await client.smembers(key)))
    if kind == "list":
        return [str(name) for name in await client.lrange(key, 0, -1)]
    if kind == "string":
        parsed = orjson.loads(await client.get(key) or "[]")
        return [str(name) for name in parsed] if isinstance(parsed, list) else []
    return []


def _pair_of(name: str, catalogue: Catalogue) -> str:
    """A pair by its unified name, or by the exchange's id (perpetuals before the others)."""
    if name in catalogue.by_pair:
        return name
    for kind in ("perpetual", "spot", "future"):
        market = catalogue.by_id.get((kind, name))
        if market is not None:
            return market.pair
    return name
