"""`MarketData`: what bots, optimizers, the shell and the HTTP API read with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, overload

from marketdata.schema import State
from marketdata.settings import Settings, Store
from readers import frames
from readers.deadlines import Deadline, MaxAge, allowed_ms
from readers.process import Places, Process, choose_places, left_by_parents
from readers.timeframes import Timeframe
from readers.times import When, range_ms
from readers.values import Funding, LastTrade, Mark, Reading, stale_value

if TYPE_CHECKING:
    import pandas as pd

_SETTLED: Final = ("rate", "interval_hours", "special_rate")

V = TypeVar("V", bound=Reading)
Pairs = list[str] | tuple[str, ...]


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class MarketData:
    """Reads candles, funding, mark and last prices that the service has collected.

    It connects when it is first asked, may be used from several threads, and survives pickling and
    forking: each process connects by itself.

    Parameters
    ----------
    config
        The configuration file. Left out: `MARKETDATA_CONFIG`, then `config.yaml`.
    settings
        Settings instead of a file.
    store
        The store alone, as in the file (`{"kind": "sqlite", "path": ...}`), instead of either.
    redis, exchange
        The URL of Redis, and the exchange that is meant where a call names none, instead of the
        file's.
    now_ms
        UTC milliseconds.

    Every method raises `UnknownPair` (with near matches) for a pair that nothing is stored of,
    `StoreUnavailable` where the store can't be reached and the cache's grace is over,
    `StoreRefused` where it refuses to answer, and `ConfigError` where the file can't be used.
    Pairs are named `BTC/USDT:USDT` or `BTCUSDT`. `max_age` is in seconds; left out it is the
    channel's own deadline (`readers.deadlines`), and None takes a value of any age. Where a value
    is older, or there is none, `StaleData` is raised, whose `state` tells why.
    """

    def __init__(
        self,
        config: str | Path | None = None,
        *,
        settings: Settings | None = None,
        store: Store | Mapping[str, Any] | None = None,
        redis: str | None = None,
        exchange: str | None = None,
        now_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self._choose = partial(choose_places, config, settings, store, redis, exchange)
        self._places: Places | None = None
        self._now_ms = now_ms
        self._process: Process | None = None

    # Candles

    def get_ohlcv(
        self,
        pair: str,
        timeframe: str = "3m",
        limit: int = 200,
        *,
        exchange: str | None = None,
        max_age: MaxAge = Deadline.OF_CHANNEL,
    ) -> pd.DataFrame:
        """The newest closed candles, ascending.

        Parameters
        ----------
        timeframe
            A whole number of minutes: `1m`, `3m`, `15m`, `1h`, `4h`, `1d`, `1w` …
        limit
            At most this many rows.
        max_age
            Seconds since the newest stored candle (or minute) was closed. Left out, candles of a
            pair that is `quiet` (there is proof that nothing is traded) aren't stale.

        Returns
        -------
        DataFrame
            `date` (open time, `datetime64[ms, UTC]`), `open high low close volume` (float64,
            volume in base units), a RangeIndex. Holes are filled flat. `.attrs["filled"]` lists
            the open times (ms) of candles beneath which something is missing,
            `.attrs["source"]` is `cache`, `redis`, `sqlite` or `influxdb`, and `.attrs["state"]`
            what the pair's candles are worth now: `live`, `quiet`, `late` …
        """
        step = Timeframe.parse(timeframe)
        if limit < 1:
            raise ValueError(f"limit is {limit}; valid: 1 or more")
        here, name, now_ms = self._here(), self._named(exchange), self._now_ms()
        symbol = here.book.find(name, pair, now_ms)
        found = here.candles.newest(name, symbol, step, limit, now_ms)
        if found.closed_ms is None:
            here.book.require(name, symbol, now_ms)
        return here.candles.judge(found, name, symbol, step, max_age, now_ms)

    @overload
    def get_history(
        self,
        pairs: str,
        timeframe: str = ...,
        since: When | None = ...,
        until: When | None = ...,
        *,
        exchange: str | None = ...,
    ) -> pd.DataFrame: ...

    @overload
    def get_history(
        self,
        pairs: Pairs,
        timeframe: str = ...,
        since: When | None = ...,
        until: When | None = ...,
        *,
        exchange: str | None = ...,
    ) -> dict[str, pd.DataFrame]: ...

    def get_history(
        self,
        pairs: str | Pairs,
        timeframe: str = "3m",
        since: When | None = None,
        until: When | None = None,
        *,
        exchange: str | None = None,
    ) -> pd.DataFrame | dict[str, pd.DataFrame]:
        """Closed candles with since <= open time < until, straight from the store.

        `since` left out begins with the first candle stored, `until` left out ends now. One pair
        gives a frame as `get_ohlcv` does, several give one each, by the names that were passed in.
        History has no deadline: it is what is stored, and empty where nothing is.
        """
        step = Timeframe.parse(timeframe)
        here, name, now_ms = self._here(), self._named(exchange), self._now_ms()
        start_ms, end_ms = range_ms(since, until, now_ms)

        def read(pair: str) -> pd.DataFrame:
            symbol = here.book.find(name, pair, now_ms)
            frame = here.candles.between(name, symbol, step, start_ms, end_ms)
            if frame.empty:
                here.book.require(name, symbol, now_ms)
            return frame

        return read(pairs) if isinstance(pairs, str) else {pair: read(pair) for pair in pairs}

    # Funding

    @overload
    def get_funding_rate(
        self, pair: str, *, exchange: str | None = ..., max_age: MaxAge = ...
    ) -> float: ...

    @overload
    def get_funding_rate(
        self,
        pair: str,
        with_source: Literal[True],
        *,
        exchange: str | None = ...,
        max_age: MaxAge = ...,
    ) -> Funding: ...

    def get_funding_rate(
        self,
        pair: str,
        with_source: bool = False,
        *,
        exchange: str | None = None,
        max_age: MaxAge = Deadline.OF_CHANNEL,
    ) -> float | Funding:
        """What the exchange shows for the upcoming settlement, as a fraction per interval.

        `with_source=True` returns a `Funding`: the rate with its prediction, next settlement and
        interval, its time and age, and where it came from.
        """
        funding = self._value(Funding, pair, exchange, max_age)
        return funding if with_source else funding.rate

    @overload
    def get_all_funding_rates(
        self, exchange: str | None = ..., *, max_age: MaxAge = ...
    ) -> dict[str, float]: ...

    @overload
    def get_all_funding_rates(
        self, exchange: str | None = ..., *, with_source: Literal[True], max_age: MaxAge = ...
    ) -> dict[str, Funding]: ...

    def get_all_funding_rates(
        self,
        exchange: str | None = None,
        with_source: bool = False,
        *,
        max_age: MaxAge = Deadline.OF_CHANNEL,
    ) -> dict[str, float] | dict[str, Funding]:
        """The funding rates of an exchange, by pair.

        A pair whose rate is too old is left out; `StaleData` is raised where that leaves none.
        """
        readings = self.readings(Funding, exchange)
        fresh = {
            pair: funding
            for pair, funding in readings.items()
            if funding.age_ms <= allowed_ms(max_age, funding.deadline_ms)
        }
        if not fresh:
            newest = min(readings.values(), key=lambda funding: funding.age_ms, default=None)
            what = f"every funding rate of {self._named(exchange)}"
            state = "late" if newest is None else self.state_of(newest)
            raise stale_value(Funding, what, newest, max_age, state)
        return fresh if with_source else {pair: funding.rate for pair, funding in fresh.items()}

    def get_funding_rate_history(
        self,
        pair: str,
        since: When | None = None,
        until: When | None = None,
        *,
        limit: int | None = None,
        exchange: str | None = None,
    ) -> pd.DataFrame:
        """What was settled, with since <= date < until, ascending.

        Returns
        -------
        DataFrame
            `date` (the settlement, `datetime64[ms, UTC]`), `funding_rate`, `interval_hours`,
            `special_rate` (an extra one at the same time); float64, NaN where the exchange gives
            none. With `limit`, the newest ones.
        """
        here, name, now_ms = self._here(), self._named(exchange), self._now_ms()
        start_ms, end_ms = range_ms(since, until, now_ms)
        symbol = here.book.find(name, pair, now_ms)
        columns = here.origins.ask_store(
            lambda store: store.columns("funding_settled", name, symbol, start_ms, end_ms, _SETTLED)
        )
        frame = frames.settled_frame(columns, here.origins.store_name, limit)
        if frame.empty:
            here.book.require(name, symbol, now_ms)
        return frame

    # Prices

    @overload
    def get_mark_price(
        self, pair: str, *, exchange: str | None = ..., max_age: MaxAge = ...
    ) -> float: ...

    @overload
    def get_mark_price(
        self,
        pair: str,
        with_source: Literal[True],
        *,
        exchange: str | None = ...,
        max_age: MaxAge = ...,
    ) -> Mark: ...

    def get_mark_price(
        self,
        pair: str,
        with_source: bool = False,
        *,
        exchange: str | None = None,
        max_age: MaxAge = Deadline.OF_CHANNEL,
    ) -> float | Mark:
        """The mark price; `with_source=True` returns a `Mark`, with the index price."""
        mark = self._value(Mark, pair, exchange, max_age)
        return mark if with_source else mark.price

    @overload
    def get_last_price(
        self, pair: str, *, exchange: str | None = ..., max_age: MaxAge = ...
    ) -> float: ...

    @overload
    def get_last_price(
        self,
        pair: str,
        with_source: Literal[True],
        *,
        exchange: str | None = ...,
        max_age: MaxAge = ...,
    ) -> LastTrade: ...

    def get_last_price(
        self,
        pair: str,
        with_source: bool = False,
        *,
        exchange: str | None = None,
        max_age: MaxAge = Deadline.OF_CHANNEL,
    ) -> float | LastTrade:
        """The price of the last trade; `with_source=True` returns a `LastTrade`."""
        trade = self._value(LastTrade, pair, exchange, max_age)
        return trade if with_source else trade.price

    # What is known

    def readings(self, kind: type[V], exchange: str | None = None) -> dict[str, V]:
        """The newest values of a kind (`Funding`, `Mark`, `LastTrade`) of any age, by pair."""
        here, name, now_ms = self._here(), self._named(exchange), self._now_ms()
        found = here.newest.read(kind, name, here.book.pairs(name, now_ms), now_ms)
        time_ms = here.states.exchange_ms(name, now_ms)
        return {pair: value.at(time_ms) for pair, value in sorted(found.items())}

    def state_of(self, reading: Reading) -> State:
        """What its channel is worth now: `live`, `quiet`, `late`, `disconnected`, `venue_down` …"""
        where = (reading.exchange, reading.pair, reading.channel)
        judge = self._here().states.judge
        return judge(*where, reading.event_ms, reading.deadline_ms, self._now_ms()).state

    def pair(self, symbol: str, exchange: str | None = None) -> str:
        """The pair that `symbol` means; one in the unified form may be taken as it is."""
        return self._here().book.find(self._named(exchange), symbol, self._now_ms())

    def pairs(self, exchange: str | None = None) -> list[str]:
        """The pairs that anything is stored of, at most a minute old."""
        return list(self._here().book.pairs(self._named(exchange), self._now_ms()))

    def counts(self) -> dict[str, int]:
        """Reads of this process by who answered them, and failures: see `readers.origins`."""
        return self._here().origins.counts()

    def close(self) -> None:
        """Give back every connection; the next call connects again."""
        process, self._process = self._process, None
        if process is not None and not process.is_inherited:
            process.origins.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_process": None}

    def _value(self, kind: type[V], pair: str, exchange: str | None, max_age: MaxAge) -> V:
        here, name, now_ms = self._here(), self._named(exchange), self._now_ms()
        symbol = here.book.find(name, pair, now_ms)
        value = here.newest.read(kind, name, [symbol], now_ms).get(symbol)
        if value is None:
            here.book.require(name, symbol, now_ms)
            state = here.states.judge(name, symbol, kind.channel, None, 0, now_ms).state
            raise stale_value(kind, f"the {kind.name} of {name} {symbol}", None, max_age, state)
        reading = value.at(here.states.exchange_ms(name, now_ms))
        if reading.age_ms > allowed_ms(max_age, reading.deadline_ms):
            state = self.state_of(reading)
            raise stale_value(kind, f"the {kind.name} of {name} {symbol}", reading, max_age, state)
        return reading

    def _here(self) -> Process:
        """What this process reads with."""
        process = self._process
        if process is None or process.is_inherited:
            if process is not None:
                left_by_parents.append(process)
            # Two threads may both get here: one of the two is then dropped before it has connected.
            process = self._process = Process(self._known_places())
        return process

    def _known_places(self) -> Places:
        if self._places is None:
            self._places = self._choose()
        return self._places

    def _named(self, exchange: str | None) -> str:
        name = exchange or self._known_places().exchange
        if name is None:
            raise ValueError("no exchange is named: pass exchange=, here or to MarketData")
        return name
