"""Closed candles as frames: from the process's cache, else Redis, else the store."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, cast

from marketdata import keys
from marketdata.errors import StoreUnavailable
from marketdata.schema import Ohlcv
from readers import frames
from readers.cache import TTL_MS, Cache
from readers.deadlines import Deadline, MaxAge, allowed_ms, candle_deadline_ms, stale
from readers.frames import OHLCV, Candles
from readers.origins import Origins
from readers.states import States
from readers.timeframes import Timeframe

if TYPE_CHECKING:
    import pandas as pd

_FRAMES_KEPT: Final = 512
_BULK_ROWS: Final = 5_000
"""From here on a bulk read is faster than one in rows."""


@dataclass(frozen=True, slots=True)
class FoundCandles:
    """A frame, and when the newest candle that it is made of was closed (None without any)."""

    frame: pd.DataFrame
    closed_ms: int | None


class CandleReader:
    """Reads candles of any timeframe. The frames that it returns are the caller's own."""

    def __init__(self, origins: Origins, states: States) -> None:
        self._origins = origins
        self._states = states
        self._cache: Cache[tuple[str, str, int, int], FoundCandles] = Cache(_FRAMES_KEPT)

    def newest(
        self, exchange: str, pair: str, timeframe: Timeframe, limit: int, now_ms: int
    ) -> FoundCandles:
        """The newest `limit` closed candles, or as many as there are.

        Raises
        ------
        StoreUnavailable
            The store has to be asked, can't be reached, and the cache's grace is over.
        """
        key = (exchange, pair, timeframe.step_ms, limit)
        cached = self._cache.fresh(key, now_ms)
        if cached is not None:
            self._origins.count("cache")
            return _copy(cached)
        time_ms = self._states.exchange_ms(exchange, now_ms)
        try:
            found = self._read(exchange, pair, timeframe, limit, time_ms)
        except StoreUnavailable:
            kept = self._cache.in_grace(key, now_ms)
            if kept is None:
                raise
            self._origins.count("grace")
            return _copy(kept)
        valid_until_ms = _valid_until(found, timeframe, time_ms) - time_ms + now_ms
        self._cache.put(key, found, valid_until_ms=valid_until_ms)
        return FoundCandles(found.frame.copy(), found.closed_ms)

    def judge(
        self,
        found: FoundCandles,
        exchange: str,
        pair: str,
        timeframe: Timeframe,
        max_age: MaxAge,
        now_ms: int,
    ) -> pd.DataFrame:
        """The frame with its state in `.attrs["state"]`. Raises `StaleData`."""
        deadline_ms = candle_deadline_ms(timeframe.base_ms)
        key = (exchange, pair, "candles")
        age_ms, state = self._states.judge(*key, found.closed_ms, deadline_ms, now_ms)
        is_allowed = (inf if age_ms is None else age_ms) <= allowed_ms(max_age, deadline_ms)
        is_proven = state == "quiet" and age_ms is not None and isinstance(max_age, Deadline)
        if not (is_allowed or is_proven):
            what = f"the newest candle of {exchange} {pair}"
            raise stale(what, age_ms, max_age, deadline_ms, state)
        found.frame.attrs["state"] = state
        return found.frame

    def between(
        self, exchange: str, pair: str, timeframe: Timeframe, start_ms: int, end_ms: int
    ) -> pd.DataFrame:
        """The closed candles with start_ms <= open time < end_ms, from the store."""
        first_ms, last_ms = timeframe.ceil_ms(start_ms), timeframe.ceil_ms(end_ms)
        base = self._bulk(exchange, pair, timeframe, first_ms, last_ms)
        return frames.to_frame(frames.build(base, timeframe), self._origins.store_name)

    def _read(
        self, exchange: str, pair: str, timeframe: Timeframe, limit: int, now_ms: int
    ) -> FoundCandles:
        base = self._from_redis(exchange, pair, timeframe, limit, now_ms)
        source = "redis"
        if base is None:
            base = self._from_store(exchange, pair, timeframe, limit, now_ms)
            source = self._origins.store_name
        candles = frames.build(base, timeframe).tail(limit)
        closed_ms = int(base.time[-1]) + timeframe.base_ms if len(base) else None
        return FoundCandles(frames.to_frame(candles, source), closed_ms)

    def _from_redis(
        self, exchange: str, pair: str, timeframe: Timeframe, limit: int, now_ms: int
    ) -> Candles | None:
        """What Redis has, if it is fresh and gives `limit` whole candles."""
        wanted = (limit + 1) * timeframe.step_ms // timeframe.base_ms
        if timeframe.base != "ohlcv_3m" or wanted > keys.CANDLES_KEPT:
            return None
        rows = self._origins.ask_hot(lambda hot: hot.candles(exchange, pair, wanted))
        oldest_ms = now_ms - timeframe.base_ms - candle_deadline_ms(timeframe.base_ms)
        if not rows or rows[-1].time < oldest_ms:
            return None
        base = frames.from_rows(rows)
        built = frames.build(base, timeframe).tail(limit)
        if len(built) < limit or len(built.filled):
            return None
        self._origins.count("redis")
        return base

    def _from_store(
        self, exchange: str, pair: str, timeframe: Timeframe, limit: int, now_ms: int
    ) -> Candles:
        """Enough for the newest `limit` candles, however long ago the newest was."""
        current_ms = timeframe.floor_ms(now_ms)
        # One more, since the candle that has just closed may not be there yet.
        start_ms = max(0, current_ms - (limit + 1) * timeframe.step_ms)
        base = self._stored(exchange, pair, timeframe, start_ms, now_ms)
        if not len(base) or _closed_before(base, timeframe) < current_ms - timeframe.step_ms:
            newest = self._before(exchange, pair, timeframe, now_ms)
            if not len(newest):
                return newest
            start_ms = max(0, _closed_before(newest, timeframe) - limit * timeframe.step_ms)
            base = self._stored(exchange, pair, timeframe, start_ms, now_ms)
        if len(base) and base.time[0] > start_ms:
            # A hole at the start is filled from what came before it.
            base = frames.join(self._before(exchange, pair, timeframe, start_ms), base)
        return base

    def _before(self, exchange: str, pair: str, timeframe: Timeframe, end_ms: int) -> Candles:
        """The newest stored candle before `end_ms`, if there is one."""
        rows = self._origins.ask_store(
            lambda store: store.rows(timeframe.base, exchange, pair, 0, end_ms, limit=1)
        )
        return frames.from_rows(cast("list[Ohlcv]", rows))

    def _stored(
        self, exchange: str, pair: str, timeframe: Timeframe, start_ms: int, end_ms: int
    ) -> Candles:
        if end_ms - start_ms > _BULK_ROWS * timeframe.base_ms:
            return self._bulk(exchange, pair, timeframe, start_ms, end_ms)
        rows = self._origins.ask_store(
            lambda store: store.rows(timeframe.base, exchange, pair, start_ms, end_ms)
        )
        return frames.from_rows(cast("list[Ohlcv]", rows))

    def _bulk(
        self, exchange: str, pair: str, timeframe: Timeframe, start_ms: int, end_ms: int
    ) -> Candles:
        columns = self._origins.ask_store(
            lambda store: store.columns(timeframe.base, exchange, pair, start_ms, end_ms, OHLCV)
        )
        return frames.from_columns(columns)


def _closed_before(base: Candles, timeframe: Timeframe) -> int:
    """The end of the newest candle of `timeframe` that is closed."""
    return timeframe.floor_ms(int(base.time[-1]) + timeframe.base_ms)


def _valid_until(found: FoundCandles, timeframe: Timeframe, now_ms: int) -> int:
    """Until the next candle closes, where nothing is missing that should be there by now."""
    if found.closed_ms is None or found.frame.attrs["filled"]:
        return now_ms + TTL_MS
    return max(found.closed_ms + timeframe.base_ms, now_ms + TTL_MS)


def _copy(found: FoundCandles) -> FoundCandles:
    frame = found.frame.copy()
    frame.attrs["source"] = "cache"
    return FoundCandles(frame, found.closed_ms)
