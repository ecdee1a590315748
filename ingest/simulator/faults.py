"""The faults that can be asked for: their types, and the board of those that are in force.

Lasting faults end after `seconds` (of the simulator's clock), after `times` occurrences, or when
they are cleared. The others happen once, at once; those that change the market or the list of
contracts stay true.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ingest.simulator.universe import Contract, Kind

Exchange = Literal["BINANCE_FUTURES", "BYBIT"]


class _Fault(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    exchange: Exchange | None = Field(None, description="left out: both")


class _Lasting(_Fault):
    seconds: float | None = Field(None, gt=0, description="left out: until cleared")
    times: int | None = Field(None, ge=1, description="occurrences; left out: no limit")


class _Hitting(_Fault):
    id: str | None = Field(None, description="the exchange's own id; left out: every contract")
    market: Kind | None = Field(None, description="where ids are shared")

    def hits(self, contract: Contract | None) -> bool:
        """Whether it is about this contract; None stands for all of them at once."""
        if self.id is None and self.market is None:
            return True
        return (
            contract is not None
            and self.id in (None, contract.id)
            and self.market in (None, contract.kind)
        )


class OnContract(_Hitting, _Lasting):
    """A lasting fault about some contracts, or all."""


class Silence(OnContract):
    """Nothing more is sent, and nothing is closed."""

    kind: Literal["silence"] = "silence"
    stream: str | None = Field(None, description="only streams whose name contains this")
    control: bool = Field(False, description="acknowledgements and pongs too")


class ClosingKline(OnContract):
    """What happens to the message that closes a kline."""

    kind: Literal["closing_kline"] = "closing_kline"
    action: Literal["drop", "delay", "duplicate", "reorder"]
    delay_s: float = Field(5.0, gt=0, description="of a delay")


class MissingRows(OnContract):
    """REST klines leave out the bars that open in start_ms <= open < end_ms."""

    kind: Literal["missing_rows"] = "missing_rows"
    start_ms: int = 0
    end_ms: int = 2**62


class NoEmptyRows(OnContract):
    """REST klines leave out bars without trades, instead of giving them flat."""

    kind: Literal["no_empty_rows"] = "no_empty_rows"


class RefuseHandshakes(_Lasting):
    """New WebSocket connections get an HTTP error, or a reset."""

    kind: Literal["refuse_handshakes"] = "refuse_handshakes"
    status: Literal[403, 418, 429, 451, 503] | None = Field(503, description="null: a reset")
    retry_after_s: int | None = Field(None, ge=0, description="left out: no header")


class CloseNew(_Lasting):
    """New WebSocket connections are taken, and closed at once."""

    kind: Literal["close_new"] = "close_new"
    code: Literal[1000, 1001, 1006, 1008, 1011, 1012] = 1000


class Offline(_Lasting):
    """No network: open connections are reset, and so is whatever asks for one."""

    kind: Literal["offline"] = "offline"


class Maintenance(_Lasting):
    """The exchange is closed for work: connections end with 1012, all else is answered 503.

    Its status route, the one thing that goes on, says so.
    """

    kind: Literal["maintenance"] = "maintenance"
    body: Literal["json", "html"] = Field("json", description="of the answers")


class Skew(_Lasting):
    """The exchange's clock, and with it all it says, is ahead of ours (behind: negative)."""

    kind: Literal["skew"] = "skew"
    skew_ms: int = Field(multiple_of=1_000)


class Lifetime(_Lasting):
    """Connections are cut when they are this old, instead of after a day."""

    kind: Literal["lifetime"] = "lifetime"
    age_s: float = Field(gt=0)


class RestDown(_Lasting):
    """REST resets the connection, answers 503, or never answers."""

    kind: Literal["rest_down"] = "rest_down"
    how: Literal["reset", "unavailable", "hang"] = "unavailable"


class RestLimited(_Lasting):
    """REST says that it had too many requests."""

    kind: Literal["rest_limited"] = "rest_limited"
    status: Literal[403, 418, 429] = 429
    retry_after_s: int | None = Field(None, ge=0, description="left out: no header")


class RestSlow(_Lasting):
    """REST answers late."""

    kind: Literal["rest_slow"] = "rest_slow"
    delay_s: float = Field(gt=0)


class Close(_Fault):
    """Close every connection with a code; 1006 is a reset without a closing frame."""

    kind: Literal["close"] = "close"
    code: Literal[1000, 1001, 1006, 1008, 1011, 1012] = 1001
    reason: str = ""
    reset: bool = Field(True, description="of 1006: TCP is reset; false: it ends in order")


class Stall(_Fault):
    """The connections that are open now deliver nothing more, and stay open; new ones deliver."""

    kind: Literal["stall"] = "stall"
    half_open: bool = Field(False, description="nothing is read or answered either")


class Inject(_Fault):
    """Send this text to every connection, as it is."""

    kind: Literal["inject"] = "inject"
    text: str


class Notice(_Fault):
    """Binance's announcement that a server goes down; its connections end after `cut_after_s`."""

    kind: Literal["notice"] = "notice"
    exchange: Literal["BINANCE_FUTURES"] = "BINANCE_FUTURES"
    cut_after_s: float | None = Field(None, gt=0, description="left out: nothing is cut")


class ReviseMinute(_Fault):
    """A closed minute gets one more trade: streamed again, and so in REST and the truth."""

    kind: Literal["revise_minute"] = "revise_minute"
    exchange: Exchange
    id: str
    market: Kind | None = None
    minute_ms: int | None = Field(None, description="its open time; left out: the last that closed")


class HaltTrading(_Hitting):
    """Nothing is traded in the next whole minutes; marks and funding go on."""

    kind: Literal["halt_trading"] = "halt_trading"
    minutes: int = Field(60, ge=1)


class Delist(_Fault):
    """A contract ends: its streams fall silent, its status says so, then it is gone."""

    kind: Literal["delist"] = "delist"
    exchange: Exchange
    id: str
    market: Kind | None = None
    gone_after_s: float = Field(600.0, ge=0, description="until no list names it any more")


class ListNew(_Fault):
    """A perpetual against USDT is traded from the next whole minute on."""

    kind: Literal["list_new"] = "list_new"
    exchange: Exchange
    base: str = Field(pattern=r"^\w{1,20}$", description="the currency; the id is it and USDT")
    price: float = Field(1.0, gt=1e-6, lt=1e6, description="around which it moves")


class Rename(_Fault):
    """A contract ends, and the same asset goes on under another currency's name."""

    kind: Literal["rename"] = "rename"
    exchange: Exchange
    id: str
    base: str = Field(pattern=r"^\w{1,20}$", description="the currency's new name")


class FundingInterval(_Fault):
    """From the next settlement on a perpetual settles at another interval."""

    kind: Literal["funding_interval"] = "funding_interval"
    exchange: Exchange
    id: str
    hours: Literal[1, 2, 4, 8]


Lasting = (
    Silence | ClosingKline | MissingRows | NoEmptyRows | RefuseHandshakes | CloseNew | Lifetime
    | Offline | Maintenance | Skew | RestDown | RestLimited | RestSlow
)  # fmt: skip
Relisting = Delist | ListNew | Rename | FundingInterval
Fault = Annotated[
    Lasting | Close | Stall | Inject | Notice | ReviseMinute | HaltTrading | Relisting,
    Field(discriminator="kind"),
]
FAULT: TypeAdapter[Fault] = TypeAdapter(Fault)

F = TypeVar("F", bound=_Lasting)
C = TypeVar("C", bound=OnContract)


class _InForce:
    def __init__(self, number: int, fault: Lasting, now_ms: int) -> None:
        self.number = number
        self.fault = fault
        self.until_ms = None if fault.seconds is None else now_ms + fault.seconds * 1000
        self.left = fault.times


class FaultBoard:
    """The lasting faults that are in force. The caller tells the time: the simulator's where a
    fault is added or listed, otherwise that of the exchange.

    >>> board = FaultBoard()
    >>> board.add(RestDown(times=1), now_ms=0)
    1
    >>> board.take(RestDown, "BYBIT", now_ms=5).how
    'unavailable'
    >>> board.take(RestDown, "BYBIT", now_ms=6) is None
    True
    """

    def __init__(self) -> None:
        self._in_force: list[_InForce] = []
        self.last_number = 0
        """How many were ever put in force."""

    def add(self, fault: Lasting, now_ms: int) -> int:
        """Put it in force; returns the number to remove it by."""
        self.last_number += 1
        self._in_force.append(_InForce(self.last_number, fault, now_ms))
        return self.last_number

    def remove(self, number: int) -> bool:
        """End one; False when it isn't in force (any more)."""
        before = len(self._in_force)
        self._in_force = [entry for entry in self._in_force if entry.number != number]
        return len(self._in_force) < before

    def clear(self) -> None:
        """End them all."""
        self._in_force.clear()

    def listed(self, now_ms: int) -> dict[int, Lasting]:
        """Those in force, by number."""
        self._prune(now_ms)
        return {entry.number: entry.fault for entry in self._in_force}

    def take(self, kind: type[F], exchange: str, now_ms: int) -> F | None:
        """The fault of this kind that hits the exchange now; counts as an occurrence."""
        for entry, fault in self._of(kind, exchange, now_ms):
            return self._occur(entry, fault)
        return None

    def take_on(
        self, kind: type[C], exchange: str, contract: Contract | None, now_ms: int
    ) -> C | None:
        """Likewise, where it hits this contract."""
        for entry, fault in self._of(kind, exchange, now_ms):
            if fault.hits(contract):
                return self._occur(entry, fault)
        return None

    def current(self, kind: type[F], exchange: str, now_ms: int) -> F | None:
        """Likewise without counting an occurrence, for faults that are a state."""
        return next((fault for _, fault in self._of(kind, exchange, now_ms)), None)

    def silenced(self, exchange: str, contract: Contract | None, stream: str, now_ms: int) -> bool:
        """Whether a message of this stream is to be held back."""
        for entry, fault in self._of(Silence, exchange, now_ms):
            if fault.hits(contract) and (fault.stream is None or fault.stream in stream):
                self._occur(entry, fault)
                return True
        return False

    def mute(self, exchange: str, now_ms: int) -> bool:
        """Whether acknowledgements and pongs are held back too."""
        return any(fault.control for _, fault in self._of(Silence, exchange, now_ms))

    def skew_ms(self, exchange: str) -> int:
        """How far the exchange's clock is ahead of the simulator's."""
        return sum(
            entry.fault.skew_ms
            for entry in self._in_force
            if isinstance(entry.fault, Skew) and entry.fault.exchange in (None, exchange)
        )

    def _of(self, kind: type[F], exchange: str, now_ms: int) -> list[tuple[_InForce, F]]:
        if not self._in_force:
            return []
        self._prune(now_ms - self.skew_ms(exchange))
        return [
            (entry, entry.fault)
            for entry in self._in_force
            if isinstance(entry.fault, kind) and entry.fault.exchange in (None, exchange)
        ]

    def _occur(self, entry: _InForce, fault: F) -> F:
        if entry.left is not None:
            entry.left -= 1
        return fault

    def _prune(self, now_ms: int) -> None:
        self._in_force = [
            entry
            for entry in self._in_force
            if entry.left != 0 and (entry.until_ms is None or now_ms < entry.until_ms)
        ]
