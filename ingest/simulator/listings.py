"""How the list of contracts changes while an exchange runs: each change as what to do when.

A contract that ends or settles differently is another one with the same id: its past stays as it
was, since everything of the past follows from exchange, kind and id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from ingest.simulator.faults import Delist, FundingInterval, ListNew, Relisting, Rename
from ingest.simulator.halts import EVER, Halt
from ingest.simulator.market import HOUR_MS, Market
from ingest.simulator.tape import MINUTE_MS
from ingest.simulator.universe import Contract, make_contract

_RANK = 20
"""How busy a new contract is: twice as many trades a minute as an average one."""
_HOURS = 4


class Change(NamedTuple):
    """What happens to the market once the exchange's clock shows `at_ms`."""

    at_ms: int
    apply: Callable[[], None]


def planned(market: Market, fault: Relisting, now_ms: int) -> Iterator[Change]:
    """The changes that a fault leads to, ascending.

    Raises
    ------
    UnknownPair
        No such contract.
    ValueError
        A new contract's id is taken.
    """
    minute_ms = (now_ms // MINUTE_MS + 1) * MINUTE_MS
    match fault:
        case Delist():
            contract = market.contract(fault.exchange, fault.id, fault.market)
            yield _end(market, contract, minute_ms)
            yield _gone(market, contract, minute_ms + round(fault.gone_after_s * 1000))
        case ListNew(exchange=exchange, base=base):
            fresh = make_contract(
                exchange, "perpetual", f"{base}USDT", base, "USDT", _RANK,
                anchor=fault.price, listed_ms=minute_ms,
            )  # fmt: skip
            _check_free(market, fresh)
            yield _begin(market, fresh)
        case Rename(base=base):
            old = market.contract(fault.exchange, fault.id, "perpetual")
            new_id = old.id.replace(old.base, base, 1)
            fresh = replace(old, id=new_id, base=base, listed_ms=minute_ms)
            _check_free(market, fresh)
            yield _end(market, old, minute_ms)
            yield _gone(market, old, minute_ms)
            yield _begin(market, fresh)
        case FundingInterval(hours=hours):
            contract = market.contract(fault.exchange, fault.id, "perpetual")
            until_now = contract.interval_hours or _HOURS
            each_ms = until_now * HOUR_MS
            settled_ms = (now_ms // each_ms + 1) * each_ms
            earlier = (*contract.earlier_intervals, (settled_ms, until_now))

            def settle_otherwise(now: Contract) -> Contract:
                return replace(now, interval_hours=hours, earlier_intervals=earlier)

            yield _change(market, contract, settled_ms, settle_otherwise)


def _end(market: Market, contract: Contract, at_ms: int) -> Change:
    market.halt(_halt(contract, at_ms // MINUTE_MS, EVER))

    def ended(now: Contract) -> Contract:
        return replace(now, status="SETTLING", expiry_ms=at_ms, silent=True)

    return _change(market, contract, at_ms, ended)


def _gone(market: Market, contract: Contract, at_ms: int) -> Change:
    return _change(market, contract, at_ms, lambda now: None)


def _begin(market: Market, fresh: Contract) -> Change:
    market.halt(_halt(fresh, 0, fresh.listed_ms // MINUTE_MS))
    return Change(fresh.listed_ms, lambda: market.relist((*market.contracts, fresh)))


def _halt(contract: Contract, first: int, end: int) -> Halt:
    return Halt(first, end, contract.exchange, contract.id, contract.kind)


def _change(
    market: Market, contract: Contract, at_ms: int, become: Callable[[Contract], Contract | None]
) -> Change:
    """What the contract is by then, as other changes have left it, becomes something else."""

    def apply() -> None:
        changed = (become(one) if _is(one, contract) else one for one in market.contracts)
        market.relist([one for one in changed if one is not None])

    return Change(at_ms, apply)


def _check_free(market: Market, fresh: Contract) -> None:
    if any(_is(contract, fresh) for contract in market.contracts):
        raise ValueError(f"{fresh.exchange} lists {fresh.id} already")


def _is(one: Contract, other: Contract) -> bool:
    return (one.exchange, one.kind, one.id) == (other.exchange, other.kind, other.id)
