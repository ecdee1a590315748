"""When nothing is traded: spans of whole minutes, of every contract or of one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ingest.simulator.universe import Contract, Kind

EVER = 2**40
"""A minute that never comes."""


@dataclass(frozen=True, slots=True)
class Halt:
    """Minutes since the epoch, `first` <= minute < `end`; None stands for any."""

    first: int
    end: int
    exchange: str | None = None
    id: str | None = None
    market: Kind | None = None

    def hits(self, contract: Contract) -> bool:
        return (
            self.exchange in (None, contract.exchange)
            and self.id in (None, contract.id)
            and self.market in (None, contract.kind)
        )


@dataclass(slots=True)
class Halts:
    """All halts of a market.

    >>> halts = Halts()
    >>> halts.add(Halt(first=10, end=20))
    >>> contract = Contract("BYBIT", "spot", "X", "X", "USDT", None, 1.0, 2, 1, 0, 5.0)
    >>> halts.traded(contract, 8, 4).tolist(), halts.before(contract, 15), halts.before(contract, 5)
    ([True, True, False, False], 10, 5)
    """

    _spans: list[Halt] = field(default_factory=list)

    def add(self, halt: Halt) -> None:
        self._spans.append(halt)

    def touch(self, contract: Contract, first: int, minutes: int) -> bool:
        """Whether one of the minutes is within a halt."""
        return any(
            span.first < first + minutes and first < span.end
            for span in self._spans
            if span.hits(contract)
        )

    def traded(self, contract: Contract, first: int, minutes: int) -> npt.NDArray[np.bool_]:
        """For each of the minutes, whether it is outside every halt."""
        minute = np.arange(first, first + minutes, dtype=np.int64)
        open_ = np.ones(minutes, dtype=np.bool_)
        for span in self._spans:
            if span.hits(contract):
                open_ &= (minute < span.first) | (minute >= span.end)
        return open_

    def before(self, contract: Contract, minute: int) -> int:
        """The minute, or where it follows a halt, that halt's first: trades are looked for before
        it."""
        for span in sorted(self._spans, key=lambda span: -span.end):
            if span.hits(contract) and span.first < minute <= span.end:
                minute = span.first
        return minute
