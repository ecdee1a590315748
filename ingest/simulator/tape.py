"""The trades of any minute, in closed form: a hash of (seed, contract, minute), no state.

Everything is integer hashing and the four operations on floats, so the same seed gives the same
tape on every machine. A contract's path is a sum of linear noises on minute knots; within a minute
trades scatter around the line between two knots.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest.simulator.universe import Contract

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]

MINUTE_MS = 60_000
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_OCTAVES = ((43_200, 0.12), (1_440, 0.04), (120, 0.012), (12, 0.004), (1, 0.0006))
"""Minutes between knots, and how far each moves the price."""
_SURE_EVERY = 60
"""Even a thin pair trades once at each of these minutes, so looking back for a price ends."""
_FEWEST, _MOST = 0.5, 1.5
"""Trades of a quiet and of a busy minute, in relation to the average."""
_SCATTER = 1.2e-8
_SIZE_BITS = np.uint64(0x3FF)
_SIDE_BIT = np.uint64(0x400)


@dataclass(frozen=True, slots=True)
class Trades:
    """Trades of consecutive minutes; row `m` holds `count[m]` of them, then padding.

    `offset` is milliseconds into the minute, ascending; prices and quantities are in the contract's
    units; `buyer` tells that the taker bought.
    """

    count: Ints
    offset: Ints
    price: Ints
    quantity: Ints
    buyer: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Marks:
    """Mark and index price of each second, in units of 1e-8; shape (minutes, 60)."""

    mark: Ints
    index: Ints


def seed_of(*parts: object) -> int:
    """A 64-bit seed of what identifies a thing."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Tape:
    """The trades and mark prices of one contract."""

    def __init__(self, seed: int, contract: Contract) -> None:
        self.contract = contract
        self._path_seed = seed_of(seed, contract.asset)
        self._seed = seed_of(seed, contract.exchange, contract.kind, contract.id)
        self.phase = self._seed & 0xFFFF
        """A number of the contract's own, to spread work over time."""
        rate = contract.trades_per_minute
        self.thin = rate * _FEWEST < 1
        """Some minutes have no trade."""
        self._slot = np.arange(int(rate * _MOST) + 2)
        self._slot_hash = _hash(self._seed ^ 0x51, self._slot)
        units_per_price = 10**contract.price_digits
        self._anchor_ticks = contract.anchor * units_per_price / contract.tick
        self._quantities = _usual_quantities(contract)

    def trades(self, first_minute: int, minutes: int) -> Trades:
        """Those of `minutes` minutes from `first_minute` (minutes since the epoch)."""
        minute = np.arange(first_minute, first_minute + minutes + 1, dtype=np.int64)
        ticks = _path(self._path_seed, minute) * self._anchor_ticks
        slope = (ticks[1:] - ticks[:-1]) / MINUTE_MS
        count = self._counts(minute[:-1])
        draw = _hash(self._seed, minute[:-1])[:, None] + self._slot_hash
        draw ^= draw >> np.uint64(32)
        draw *= _MIX
        draw ^= draw >> np.uint64(29)
        # One trade in each of `count` equal parts of the minute: ascending without sorting.
        share = (draw >> np.uint64(44)) * 2.0**-20
        share += self._slot
        share *= (MINUTE_MS / np.maximum(count, 1))[:, None]
        offset = share.astype(np.int64)
        price = offset * slope[:, None]
        price += ticks[:-1, None]
        price *= 1 + ((draw >> np.uint64(16)).astype(np.uint16) - 32_768.0) * _SCATTER
        np.rint(price, out=price)
        quantity = self._quantities[(draw & _SIZE_BITS).astype(np.intp)]
        buyer = (draw & _SIDE_BIT) != 0
        return Trades(count, offset, price.astype(np.int64) * self.contract.tick, quantity, buyer)

    def _counts(self, minute: Ints) -> Ints:
        rate = self.contract.trades_per_minute
        if not rate:
            return np.zeros(len(minute), dtype=np.int64)
        draw = _hash(self._seed ^ 0xC0, minute)
        expected = rate * (_unit(draw) * (_MOST - _FEWEST) + _FEWEST)
        carry = (draw & np.uint64(0x7FF)) / 2048
        number = np.floor(expected + carry).astype(np.int64)
        return np.where(minute % _SURE_EVERY == 0, np.maximum(number, 1), number)

    def marks(self, first_minute: int, minutes: int) -> Marks:
        """Mark and index price of every second."""
        minute = np.arange(first_minute, first_minute + minutes + 1, dtype=np.int64)
        level = _path(self._path_seed, minute)
        second = np.arange(60, dtype=np.int64)
        draw = _hash(self._seed ^ 0x3A, minute[:-1, None] * 64 + second)
        premium = (_path(self._seed, minute[:-1]) - 1) * 0.003
        middle = level[:-1, None] + (level[1:] - level[:-1])[:, None] * (second / 60)
        index = self.contract.anchor * middle * (1 + (_unit(draw) - 0.5) * 4e-5)
        wobble = (draw & np.uint64(0x3FF)) / 1024 - 0.5
        mark = index * (1 + premium[:, None] + wobble * 6e-5)
        grain = (
            1
            if self.contract.tradfi
            else self.contract.tick * 10 ** (8 - self.contract.price_digits)
        )
        mark_units = np.maximum(np.rint(mark * 1e8 / grain).astype(np.int64), 1) * grain
        return Marks(mark_units, np.rint(index * 1e8).astype(np.int64))

    def rate(self, settlement: int, hours: int) -> int:
        """The funding rate of the n-th interval of `hours` since the epoch, in units of 1e-8."""
        draw = _hash(self._seed ^ 0xF0, np.array([settlement], dtype=np.int64))
        spread = float(_unit(draw)[0]) * 2 - 1
        return round((10_000 + spread * abs(spread) * 40_000) * hours / 8)

    def wobble(self, minute: int) -> float:
        """A number in -1 … 1 that changes each minute."""
        return float(_unit(_hash(self._seed ^ 0xB0, np.array([minute], dtype=np.int64)))[0]) * 2 - 1


def _path(seed: int, minute: Ints) -> Floats:
    """Price relative to its anchor at the minutes' starts."""
    level = np.ones(len(minute))
    for period, reach in _OCTAVES:
        knot = minute // period
        share = (minute - knot * period) / period
        left = _unit(_hash(seed ^ period, knot))
        right = _unit(_hash(seed ^ period, knot + 1))
        level += reach * (2 * (left + (right - left) * share) - 1)
    return level


def _hash(seed: int, number: Ints) -> Hashes:
    """SplitMix64 of each number, in the sequence that `seed` opens."""
    x = number.astype(np.uint64) * _GOLDEN + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * _MIX
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = x ^ (x >> np.uint64(31))
    return mixed


def _unit(draw: Hashes) -> Floats:
    return (draw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _usual_quantities(contract: Contract) -> Ints:
    """1024 sizes, most of them small; busier contracts trade more at once."""
    notional = 900.0 + 40.0 * contract.trades_per_minute
    usual = max(4.0, notional / contract.anchor * 10**contract.qty_digits)
    share = np.arange(1024) / 1024
    sizes: Ints = np.rint(usual * (0.02 + 4 * share**4)).astype(np.int64)
    return np.maximum(sizes, 1)
