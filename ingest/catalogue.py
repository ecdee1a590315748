"""What is known of each exchange's markets: fetched within a time limit, and kept on disk.

With the REST side down a service starts on what it knew; only an exchange that was never reached
can't start.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import BaseModel, ValidationError

from ingest.clock import Clock
from marketdata.errors import (
    BadMessage,
    ExchangeUnavailable,
    MarketDataError,
    TransientError,
)
from marketdata.pairs import Catalogue

log = structlog.get_logger()

FETCH_TIMEOUT_S = 90.0
"""Longer than a window of the weight budget, which a repair may have spent. A server that doesn't
answer costs the client's own, shorter limit."""


class MetadataSource(Protocol):
    """The part of an exchange's REST side that tells its markets (see `rest_base.ExchangeRest`)."""

    exchange: str
    interval_hours: float | None

    async def catalogue(self) -> Mapping[str, object]: ...

    def markets(self, metadata: Mapping[str, object]) -> Catalogue: ...

    async def intervals(self) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class Known:
    """An exchange's markets as of `fetched_ms`; `error` says why they are not newer."""

    catalogue: Catalogue
    fetched_ms: int
    error: MarketDataError | None = None


class Catalogues:
    """The markets of every exchange, one JSON file each under `folder`.

    Attributes
    ----------
    failures
        Fetches, reads and writes that failed, by exchange.
    """

    def __init__(
        self,
        folder: Path,
        sources: Iterable[MetadataSource],
        clock: Clock,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        self.failures: Counter[str] = Counter()
        self._folder = folder
        self._sources = {source.exchange: source for source in sources}
        self._clock = clock
        self._timeout_s = timeout_s
        self._known: dict[str, Known] = {}
        self._metadata: dict[str, Mapping[str, object]] = {}
        self._hours: dict[str, Mapping[str, float]] = {}

    async def refresh(self, exchange: str) -> Known:
        """Fetch markets and funding intervals, and keep them; or tell what is known from before.

        Raises
        ------
        ExchangeUnavailable
            They can't be had now, and nothing was kept.
        ExchangeRefused, BadMessage
            The exchange won't tell them, or not in a form that is understood; nothing was kept.
        """
        source = self._sources[exchange]
        try:
            metadata, catalogue = await self._fetch(source)
        except MarketDataError as error:
            self.failures[exchange] += 1
            known = await self._known_before(source, error)
            log.warning(
                "catalogue_from_before",
                exchange=exchange,
                age_ms=self._clock.now_ms() - known.fetched_ms,
                cause=str(error),
            )
        else:
            await self._fetch_hours(source)
            known = Known(self._timed(catalogue), self._clock.now_ms())
            await self._keep(exchange, known.fetched_ms, metadata)
        self._known[exchange] = known
        return known

    def metadata(self, exchange: str) -> Mapping[str, object] | None:
        """The exchange's own words behind its markets, None before the first `refresh`."""
        return self._metadata.get(exchange)

    async def _fetch(self, source: MetadataSource) -> tuple[Mapping[str, object], Catalogue]:
        try:
            async with self._clock.timeout(self._timeout_s):
                metadata = await source.catalogue()
        except TimeoutError as error:
            raise ExchangeUnavailable(
                f"{source.exchange}: no market list within {self._timeout_s:g} s"
            ) from error
        catalogue = source.markets(metadata)
        if not catalogue.markets:
            raise BadMessage(f"{source.exchange}: the market list is empty, expected markets")
        self._metadata[source.exchange] = metadata
        return metadata, catalogue

    async def _fetch_hours(self, source: MetadataSource) -> None:
        try:
            async with self._clock.timeout(self._timeout_s):
                self._hours[source.exchange] = await source.intervals()
        except (MarketDataError, TimeoutError) as error:
            self.failures[source.exchange] += 1
            log.warning("intervals_from_before", exchange=source.exchange, cause=str(error))

    def _timed(self, catalogue: Catalogue) -> Catalogue:
        hours = self._hours.get(catalogue.exchange)
        if hours is None:
            return catalogue
        return catalogue.with_intervals(hours, self._sources[catalogue.exchange].interval_hours)

    async def _known_before(self, source: MetadataSource, error: MarketDataError) -> Known:
        if source.exchange in self._known:
            return replace(self._known[source.exchange], error=error)
        path = self._path(source.exchange)
        try:
            kept = _Kept.model_validate_json(await asyncio.to_thread(path.read_bytes))
            catalogue = source.markets(kept.metadata)
            self._metadata[source.exchange] = kept.metadata
        except (OSError, ValidationError, BadMessage) as unreadable:
            if not isinstance(error, TransientError):
                raise error from unreadable
            raise ExchangeUnavailable(
                f"{source.exchange}: no market list to be had, and none kept at {path} "
                f"({type(unreadable).__name__}): {error}",
                retry_after_s=error.retry_after_s,
            ) from error
        if kept.hours is not None:
            self._hours.setdefault(source.exchange, kept.hours)
        return Known(self._timed(catalogue), kept.fetched_ms, error)

    async def _keep(self, exchange: str, fetched_ms: int, metadata: Mapping[str, object]) -> None:
        kept = _Kept(
            fetched_ms=fetched_ms, metadata=dict(metadata), hours=self._hours.get(exchange)
        )
        try:
            await asyncio.to_thread(_replace, self._path(exchange), kept)
        except OSError as error:
            self.failures[exchange] += 1
            log.warning("catalogue_not_kept", exchange=exchange, cause=str(error))

    def _path(self, exchange: str) -> Path:
        return self._folder / f"{exchange}.json"


class _Kept(BaseModel):
    """One file: the exchange's own metadata, and the hours between fundings by id."""

    fetched_ms: int
    metadata: dict[str, object]
    hours: dict[str, float] | None


def _replace(path: Path, kept: _Kept) -> None:
    """Write beside the old file, then take its place: nobody ever reads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    with fresh.open("wb") as file:
        file.write(kept.model_dump_json().encode())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
