"""Reads the store for an audit: which pairs, what should be there of each, one group at a time.

A group is the markets of the same two currencies: they are held against each other, and together
they are all that is in memory. Reading goes month by month, so a span of years costs no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Final, cast

import numpy as np

from ingest import audit
from ingest.audit import Arrays, Card, Finding, Span
from ingest.outliers import APART, APART_KINDS, NEIGHBOURS, Ints, excursion, leaps
from marketdata.exchanges import channels_of
from marketdata.pairs import Market
from marketdata.schema import CANDLE_MS, MINUTE_MS, Channel, Gap
from marketdata.settings import ExchangeSettings
from readers.sources.base import Source

MONTH_MS: Final = 30 * audit.DAY_MS
MARGIN_MS: Final = 2 * NEIGHBOURS * CANDLE_MS
"""Read on both sides of the span, so that its first and last candles have neighbours too."""
SETTLED_AFTER_MS: Final = 15 * MINUTE_MS
"""A settlement is expected in the store when this long has passed since."""
DROPPED_AFTER_MS: Final = audit.DAY_MS
"""A pair of a list that changes is no longer collected when it is so far behind its exchange."""

PRICES: Final = ("open", "high", "low", "close")
CANDLE: Final = (*PRICES, "volume", "quote_volume", "trades", "source")


@dataclass(frozen=True, slots=True)
class Subject:
    """A pair to audit, and until when it is expected; `market` is None where it isn't known."""

    exchange: str
    symbol: str
    channels: Sequence[Channel]
    market: Market | None
    end_ms: int

    @property
    def currencies(self) -> str:
        return self.symbol.partition(":")[0]

    @property
    def kind(self) -> str:
        _, _, settled = self.symbol.partition(":")
        return "spot" if not settled else "future" if "-" in settled else "perpetual"


@dataclass(slots=True)
class _Read:
    """A subject's card, and its candles while the group lasts."""

    subject: Subject
    card: Card
    candles: Arrays = field(default_factory=dict)


def subjects(
    source: Source,
    exchange: str,
    settings: ExchangeSettings,
    markets: Mapping[str, Market] | None,
    span: Span,
) -> list[Subject]:
    """The pairs of an exchange that an audit of the span is about.

    Those that the configuration names are expected to the end of the span. Others that are stored,
    to their last candle; where the configuration names none itself (by volume, from Redis), those
    that kept up with the exchange to the end as well.
    """
    newest = {pair: _newest_ms(source, exchange, pair, span) for pair in source.pairs(exchange)}
    stored = {pair: newest_ms for pair, newest_ms in newest.items() if newest_ms is not None}
    if isinstance(settings.pairs, tuple):
        named = set(settings.pairs)
    else:
        latest_ms = max(stored.values(), default=0)
        named = {pair for pair, ms in stored.items() if ms > latest_ms - DROPPED_AFTER_MS}
    found = []
    for pair in sorted(named | stored.keys()):
        market = (markets or {}).get(pair)
        gone = pair not in named or (market is not None and not market.active)
        end_ms = stored[pair] + CANDLE_MS if gone and pair in stored else span.end_ms
        if market is not None and market.expiry_ms is not None:
            end_ms = min(end_ms, market.expiry_ms // CANDLE_MS * CANDLE_MS)
        if end_ms > span.start_ms:
            channels = settings.channels or channels_of(exchange)
            subject = Subject(exchange, pair, channels, market, min(end_ms, span.end_ms))
            found.append(subject)
    return found


def audit_pairs(source: Source, wanted: Iterable[Subject], span: Span) -> Iterator[Card]:
    """The cards of all subjects.

    Raises
    ------
    StoreUnavailable, StoreRefused
        The store can't be read.
    """
    groups: dict[str, list[Subject]] = {}
    for subject in wanted:
        groups.setdefault(subject.currencies, []).append(subject)
    for group in groups.values():
        reads = [_audit_one(source, subject, span) for subject in group]
        _judge_outliers(reads, span)
        for read in reads:
            yield read.card


def find_holes(source: Source, series: str, exchange: str, symbol: str, span: Span) -> list[Span]:
    """The holes of a series in a span; reads nothing but times."""
    measurement = audit.MEASUREMENT_OF[series]
    times = source.columns(measurement, exchange, symbol, span.start_ms, span.end_ms, ())["time"]
    return audit.find_missing(cast("Ints", times), span, audit.STEP_OF[series])


def _audit_one(source: Source, subject: Subject, span: Span) -> _Read:
    read = _Read(subject, Card(subject.exchange, subject.symbol))
    span = Span(span.start_ms, subject.end_ms)
    card = read.card
    if "candles" in subject.channels:
        wide = Span(span.start_ms - MARGIN_MS, span.end_ms + MARGIN_MS)
        read.candles = _columns(source, "candles", subject, wide, CANDLE)
        minutes = _columns(source, "minutes", subject, span, CANDLE)
        candles = _within(read.candles, span)
        begin_ms = _count(source, card, subject, "candles", candles, span, None)
        _count(source, card, subject, "minutes", minutes, span, begin_ms)
        card.add_bad(audit.bad_rows("candles", candles))
        card.add_bad(audit.not_sums(candles, minutes))
        card.add_bad(audit.bad_rows("minutes", minutes))
    else:
        begin_ms = None
    if "mark_price" in subject.channels and subject.kind != "spot":
        marks = _columns(source, "marks", subject, span, (*PRICES, "source"))
        _count(source, card, subject, "marks", marks, span, begin_ms)
        card.add_bad(audit.bad_rows("marks", marks))
    if "funding" in subject.channels and subject.kind == "perpetual":
        _count_settlements(source, card, subject, span, begin_ms)
    if card.missing:
        gaps = source.rows("gap", subject.exchange, subject.symbol, 0, span.end_ms)
        card.missing = audit.with_reasons(card.missing, cast("list[Gap]", gaps))
    return read


def _count(
    source: Source,
    card: Card,
    subject: Subject,
    series: str,
    rows: Arrays,
    span: Span,
    otherwise_ms: int | None,
) -> int:
    """Count a series from its first stored row; where there is none, from `otherwise_ms`, the
    pair's listing or the start of the span. Returns when it begins."""
    begin_ms = _begin_ms(source, series, subject, rows["time"], span)
    if begin_ms is None:
        listed_ms = subject.market.listed_ms if subject.market is not None else None
        begin_ms = otherwise_ms or max(span.start_ms, listed_ms or 0)
    begin_ms = -(-begin_ms // CANDLE_MS) * CANDLE_MS
    card.starts[series] = begin_ms
    within = Span(begin_ms, max(begin_ms, span.end_ms))
    audit.count_days(card, series, within, rows["time"], rows["source"])
    return begin_ms


def _count_settlements(
    source: Source, card: Card, subject: Subject, span: Span, begin_ms: int | None
) -> None:
    span = Span(span.start_ms, max(span.start_ms, span.end_ms - SETTLED_AFTER_MS))
    names = ("interval_hours",)
    rows = _columns(source, "settlements", subject, span, names)
    times, hours = rows["time"], rows["interval_hours"]
    before = source.rows(
        "funding_settled", subject.exchange, subject.symbol, 0, span.start_ms, limit=1
    )
    first_ms = span.start_ms
    if before:
        row = cast("Any", before[0])
        times = np.concatenate(([row.time], times))
        hours = np.concatenate(([row.interval_hours or np.nan], hours))
    elif len(times):
        first_ms = int(times[0])
    else:
        first_ms = begin_ms or span.start_ms
    card.starts["settlements"] = first_ms
    otherwise = subject.market.interval_hours if subject.market is not None else None
    expected = Span(first_ms, max(first_ms, span.end_ms))
    audit.count_settlements(card, times, hours, expected, otherwise)


def _begin_ms(source: Source, series: str, subject: Subject, times: Ints, span: Span) -> int | None:
    """When a series begins, not before the span; None where nothing of it is stored."""
    measurement = audit.MEASUREMENT_OF[series]
    if source.rows(measurement, subject.exchange, subject.symbol, 0, span.start_ms, limit=1):
        return span.start_ms
    return int(times[0]) if len(times) else None


def _newest_ms(source: Source, exchange: str, pair: str, span: Span) -> int | None:
    newest = source.rows("ohlcv_3m", exchange, pair, 0, span.end_ms, limit=1)
    return newest[0].time if newest else None


def _judge_outliers(reads: Sequence[_Read], span: Span) -> None:
    """Spikes of each, without those that another exchange had too; then one against the other."""
    comparable = [r for r in reads if r.candles and r.subject.kind != "future"]
    for read in reads:
        if read.candles:
            others = [r for r in comparable if r.subject.exchange != read.subject.exchange]
            spikes = audit.spike_findings(read.candles)
            read.card.add_outliers(
                [
                    spike
                    for spike in spikes
                    if _inside(spike.time_ms, read, span) and not _confirmed(spike, read, others)
                ]
            )
    for one, other in permutations(comparable, 2):
        if one.subject.exchange != other.subject.exchange:
            told = {finding.time_ms for finding in one.card.outliers}
            one.card.add_outliers(
                [
                    finding
                    for finding in _apart(one, other)
                    if _inside(finding.time_ms, one, span) and finding.time_ms not in told
                ]
            )


def _inside(time_ms: int, read: _Read, span: Span) -> bool:
    return span.start_ms <= time_ms < read.subject.end_ms


def _confirmed(spike: Finding, read: _Read, others: Sequence[_Read]) -> bool:
    """Whether another exchange moved the same way in the same candle, at least half as far."""
    ours = _excursion_at(read.candles, spike.time_ms)
    return any(
        _excursion_at(other.candles, spike.time_ms) / ours >= 0.5 for other in others if ours
    )


def _excursion_at(candles: Arrays, time_ms: int) -> float:
    place = int(np.searchsorted(candles["time"], time_ms))
    close = candles["close"]
    if place >= len(close) or candles["time"][place] != time_ms or len(close) < 2:
        return 0.0
    return excursion(close, place)


def _apart(one: _Read, other: _Read) -> Iterator[Finding]:
    """Where the two differ and it is `one` that left its own neighbours further."""
    ours, theirs = _sound(one.candles), _sound(other.candles)
    times, our_places, their_places = np.intersect1d(
        ours["time"], theirs["time"], assume_unique=True, return_indices=True
    )
    our_close, their_close = ours["close"][our_places], theirs["close"][their_places]
    movement = np.maximum(
        (ours["high"] - ours["low"])[our_places] / our_close,
        (theirs["high"] - theirs["low"])[their_places] / their_close,
    )
    limit = APART if one.subject.kind == other.subject.kind else APART_KINDS
    leap = leaps(our_close, their_close, movement, limit)
    for place in np.flatnonzero(leap).tolist():
        if abs(excursion(our_close, place)) > abs(excursion(their_close, place)):
            yield Finding(
                "candles",
                int(times[place]),
                "apart",
                f"close {our_close[place]:.12g}, {other.subject.exchange} "
                f"{other.subject.symbol} {their_close[place]:.12g}: "
                f"{leap[place]:.2%} off their usual ratio",
            )


def _sound(candles: Arrays) -> Arrays:
    """Candles in which something was traded, at prices that are some."""
    kept = (candles["volume"] > 0) & (candles["close"] > 0) & np.isfinite(candles["close"])
    return {name: candles[name][kept] for name in ("time", *PRICES)}


def _columns(
    source: Source, series: str, subject: Subject, span: Span, names: Sequence[str]
) -> Arrays:
    """A series in bulk, read month by month."""
    measurement = audit.MEASUREMENT_OF[series]
    parts = [
        source.columns(
            measurement,
            subject.exchange,
            subject.symbol,
            start_ms,
            min(span.end_ms, start_ms + MONTH_MS),
            names,
        )
        for start_ms in range(span.start_ms, max(span.end_ms, span.start_ms + 1), MONTH_MS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in ("time", *names)}


def _within(rows: Arrays, span: Span) -> Arrays:
    inside = (rows["time"] >= span.start_ms) & (rows["time"] < span.end_ms)
    return {name: values[inside] for name, values in rows.items()}
