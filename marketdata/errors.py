"""Every error of the platform, in one tree.

    MarketDataError
    ├── TerminalError                 trying again can't help
    │   ├── ConfigError               the configuration file is wrong
    │   ├── UnknownPair               the exchange or the store has no such pair
    │   ├── BadMessage                one message of an exchange can't be understood
    │   ├── ExchangeRefused           the exchange answers that the request is wrong
    │   └── StoreRefused              the store won't take anything: token, bucket, schema
    └── TransientError                the same thing may work later
        ├── ExchangeUnavailable       refused, reset, timed out, 5xx
        │   └── RateLimited           403, 418, 429: `retry_after_s` says when
        ├── StoreUnavailable          the store can't be reached, or not now
        │   └── BatchFailed           one write failed; another one may not
        ├── ServiceUnavailable        no ingestion service answers where one should
        └── StaleData                 the newest value is older than its deadline

Whether to retry follows from the type, never from the text. A message says what failed, on what,
what was expected and what happens next; `code` is the short name that HTTP answers carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MarketDataError(Exception):
    """The root of the tree; `code` names the class in HTTP answers and metrics."""

    code = "error"


class TerminalError(MarketDataError):
    """Trying the same thing again can't help."""


class TransientError(MarketDataError):
    """The same thing may work later; `retry_after_s` where the other side named a time."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a configuration file.

    >>> print(Fault("store.kind", 3, "'postgres'", "one of: sqlite, influxdb"))
    line 3: store.kind: found 'postgres'; valid: one of: sqlite, influxdb
    """

    key: str
    line: int | None
    found: str
    valid: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.key}: found {self.found}; valid: {self.valid}"


class ConfigError(TerminalError):
    """The configuration can't be used; `faults` has one entry for each thing that is wrong."""

    code = "bad_config"

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in self.faults)
        super().__init__(f"{source} can't be used:\n{lines}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, tuple[Fault, ...]]]:
        return type(self), (self.source, self.faults)


class UnknownPair(TerminalError):
    """No such pair; `near` holds the names that come close."""

    code = "unknown_pair"

    def __init__(self, pair: str, exchange: str, near: Sequence[str] = ()) -> None:
        self.pair = pair
        self.exchange = exchange
        self.near = tuple(near)
        hint = f"; close to it: {', '.join(self.near)}" if self.near else ""
        super().__init__(f"{exchange} has no pair {pair!r}{hint}")

    def __reduce__(self) -> tuple[type[UnknownPair], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.pair, self.exchange, self.near)


class BadMessage(TerminalError):
    """One message of an exchange can't be understood; it is counted and left out."""

    code = "bad_message"


class ExchangeRefused(TerminalError):
    """The exchange says that the request itself is wrong."""

    code = "exchange_refused"


class StoreRefused(TerminalError):
    """The store won't take any row as things are: wrong token, no bucket, damaged file."""

    code = "store_refused"


class ExchangeUnavailable(TransientError):
    """The exchange can't be reached, or answers 5xx."""

    code = "exchange_unavailable"


class RateLimited(ExchangeUnavailable):
    """The exchange wants fewer requests; nothing is sent to it before `retry_after_s`."""

    code = "rate_limited"


class StoreUnavailable(TransientError):
    """The store can't be reached, or can't answer now."""

    code = "store_unavailable"


class BatchFailed(StoreUnavailable):
    """The store failed on one write: 500, cut off, no answer in time; another one may succeed."""

    code = "batch_failed"


class ServiceUnavailable(TransientError):
    """No ingestion service answers at its monitor's address."""

    code = "service_unavailable"


class StaleData(TransientError):
    """The newest value is older than its deadline, so it is not handed out as fresh.

    `age_ms` is None where there is no value at all.
    """

    code = "stale_data"

    def __init__(
        self,
        what: str,
        *,
        age_ms: int | None,
        max_age_ms: int,
        state: str = "late",
        retry_after_s: float | None = None,
    ) -> None:
        self.what = what
        self.age_ms = age_ms
        self.max_age_ms = max_age_ms
        self.state = state
        age = "no value at all" if age_ms is None else f"{age_ms} ms old"
        super().__init__(
            f"{what} is {state}: {age}, at most {max_age_ms} ms allowed; "
            f"pass max_age=None to take it as it is",
            retry_after_s=retry_after_s,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_stale, (
            self.what,
            self.age_ms,
            self.max_age_ms,
            self.state,
            self.retry_after_s,
        )


def _rebuild_stale(
    what: str, age_ms: int | None, max_age_ms: int, state: str, retry_after_s: float | None
) -> StaleData:
    return StaleData(
        what, age_ms=age_ms, max_age_ms=max_age_ms, state=state, retry_after_s=retry_after_s
    )
