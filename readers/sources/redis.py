"""Reads the hot cache: the newest values, the newest closed candles, and states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import orjson

from marketdata import keys
from marketdata.errors import StoreUnavailable
from marketdata.schema import LAST, Last, Ohlcv

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

_CONNECT_TIMEOUT_S: Final = 0.5
_READ_TIMEOUT_S: Final = 1.0
_NUMBERS: Final = [
    (column.name.encode(), float if column.kind == "float" else int) for column in LAST.fields
]

T = TypeVar("T")


class RedisSource:
    """One Redis, connected when it is first asked."""

    name = "redis"

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Redis | None = None

    def last(self, exchange: str, symbols: Sequence[str]) -> dict[str, Last]:
        def ask(client: Redis) -> list[dict[bytes, bytes]]:
            pipeline = client.pipeline(transaction=False)
            for symbol in symbols:
                pipeline.hgetall(keys.last(exchange, symbol))
            return pipeline.execute()

        hashes = self._ask(ask)
        return {
            symbol: _last(exchange, symbol, values)
            for symbol, values in zip(symbols, hashes, strict=True)
            if values
        }

    def candles(self, exchange: str, symbol: str, limit: int) -> list[Ohlcv]:
        key = keys.candles(exchange, symbol)
        members = self._ask(lambda client: cast("list[bytes]", client.zrange(key, -limit, -1)))
        newest: dict[int, Ohlcv] = {}
        # A candle that is being corrected may be there twice for a moment.
        for time, *rest in orjson.loads(b"[" + b",".join(members) + b"]"):
            candle = Ohlcv(exchange, symbol, time, *rest)
            known = newest.get(time)
            if known is None or candle.revision >= known.revision:
                newest[time] = candle
        return list(newest.values())

    def health(self, exchange: str) -> dict[str, str]:
        key = keys.health(exchange)
        fields = self._ask(lambda client: cast("dict[bytes, bytes]", client.hgetall(key)))
        return {name.decode(): value.decode() for name, value in fields.items()}

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _ask(self, question: Callable[[Redis], T]) -> T:
        import redis

        try:
            return question(self._connect())
        except redis.RedisError as error:
            raise StoreUnavailable(f"Redis can't be read: {error}") from error

    def _connect(self) -> Redis:
        if self._client is None:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._client = Redis.from_url(
                self._url,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                socket_timeout=_READ_TIMEOUT_S,
                # Once more, at once: a kept connection may have died since.
                retry=Retry(NoBackoff(), 1),
            )
        return self._client


def _last(exchange: str, symbol: str, values: dict[bytes, bytes]) -> Last:
    row: list[Any] = [exchange, symbol]
    for name, number in _NUMBERS:
        text = values.get(name)
        row.append(number(text) if text else None)
    return Last._make(row)
