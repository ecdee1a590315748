"""Exchange metadata to ccxt unified names: a market is what its exchange says it is.

The key of a market is (exchange, kind, id) with the id byte for byte as the exchange writes it; its
pair is the name that ccxt gives it. A contract of a type that is not known here is set aside with
the reason, since a wrong guess would file one contract's prices under another's name.

Sources: https://developers.binance.com/docs/derivatives/usds-margined-futures (Exchange
Information), https://bybit-exchange.github.io/docs/v5/market/instrument
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from marketdata.errors import BadMessage, UnknownPair

MarketKind = Literal["perpetual", "future", "spot"]
Row = Mapping[str, object]
Rows = Iterable[Row]

_BINANCE_KINDS: Mapping[str, MarketKind] = {
    "PERPETUAL": "perpetual",
    "TRADIFI_PERPETUAL": "perpetual",
    "CURRENT_MONTH": "future",
    "NEXT_MONTH": "future",
    "CURRENT_QUARTER": "future",
    "NEXT_QUARTER": "future",
}
_BYBIT_KINDS: Mapping[str, MarketKind] = {
    "LinearPerpetual": "perpetual",
    "LinearFutures": "future",
}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_CCXT_CODES = {"XBT": "BTC", "BCHSV": "BSV"}
_LATEST_MS = 253_402_300_800_000
"""The year 10,000, where dates end."""
_NEAR = 3
_ALIKE = 0.7


@dataclass(frozen=True, slots=True)
class Market:
    """One market of an exchange.

    `pair` is the ccxt unified symbol, `id` the exchange's own, `settle` the currency that profit is
    paid in (None on spot). `interval_hours` is the time between two fundings, None where there are
    none or nothing is known. `active` is false for what is listed but not traded now.
    """

    exchange: str
    kind: MarketKind
    id: str
    pair: str
    base: str
    quote: str
    settle: str | None
    expiry_ms: int | None
    active: bool
    listed_ms: int | None
    interval_hours: float | None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row of the metadata that is not understood, and why."""

    id: str
    reason: str


class Catalogue:
    """The markets of one exchange, found by pair or by (kind, id).

    Where two rows claim one name, the traded one has it and the other is quarantined.
    """

    def __init__(
        self, exchange: str, markets: Iterable[Market], quarantined: Iterable[Quarantined] = ()
    ) -> None:
        self.exchange = exchange
        self.by_pair: dict[str, Market] = {}
        self.by_id: dict[tuple[MarketKind, str], Market] = {}
        doubles = []
        for market in sorted(markets, key=lambda market: not market.active):
            holder = self.by_pair.get(market.pair) or self.by_id.get((market.kind, market.id))
            if holder is not None:
                reason = f"{market.pair} ({market.kind}) is already taken by {holder.id}"
                doubles.append(Quarantined(market.id, reason))
                continue
            self.by_pair[market.pair] = market
            self.by_id[market.kind, market.id] = market
        self.quarantined: tuple[Quarantined, ...] = (*quarantined, *doubles)

    @property
    def markets(self) -> tuple[Market, ...]:
        return tuple(self.by_pair.values())

    def find(self, pair: str) -> Market:
        """The market of a pair.

        Raises
        ------
        UnknownPair
            The exchange lists no such pair; the error holds the names that come close.
        """
        market = self.by_pair.get(pair)
        if market is None:
            raise UnknownPair(pair, self.exchange, self.near(pair))
        return market

    def near(self, name: str) -> tuple[str, ...]:
        """Up to three pairs that `name` may have meant: of the same letters, else of alike ones."""
        pairs_by_letters: dict[str, list[str]] = {}
        for market in self.by_pair.values():
            forms = {market.pair, market.id}
            if market.kind != "future":
                forms.add(market.base + market.quote)
            for letters in {_letters(form) for form in forms}:
                pairs_by_letters.setdefault(letters, []).append(market.pair)
        wanted = _letters(name)
        alike = (
            [wanted]
            if wanted in pairs_by_letters
            else difflib.get_close_matches(wanted, pairs_by_letters, n=2 * _NEAR, cutoff=_ALIKE)
        )
        found = dict.fromkeys(pair for letters in alike for pair in pairs_by_letters[letters])
        return tuple(found)[:_NEAR]

    def with_intervals(
        self, hours: Mapping[str, float], otherwise: float | None = None
    ) -> Catalogue:
        """The same markets with the funding intervals of `hours` (perpetuals, by exchange id).

        A perpetual that `hours` lacks gets `otherwise`, or keeps what it has where that is None.
        """
        return Catalogue(
            self.exchange,
            (
                replace(
                    market,
                    interval_hours=hours.get(market.id, otherwise or market.interval_hours),
                )
                if market.kind == "perpetual"
                else market
                for market in self.by_pair.values()
            ),
            self.quarantined,
        )


def binance_futures_markets(exchange_info: Mapping[str, object]) -> Catalogue:
    """Markets of Binance USD-M futures out of `/fapi/v1/exchangeInfo`.

    Funding intervals are in another answer (`fundingInfo`): see `Catalogue.with_intervals`.

    Raises
    ------
    BadMessage
        The answer holds no list of symbols.

    >>> catalogue = binance_futures_markets({"symbols": [{
    ...     "symbol": "BTCUSDT_261225", "pair": "BTCUSDT", "contractType": "CURRENT_QUARTER",
    ...     "baseAsset": "BTC", "quoteAsset": "USDT", "marginAsset": "USDT", "status": "TRADING",
    ...     "deliveryDate": 1798185600000, "onboardDate": 1782460800000}]})
    >>> catalogue.by_id["future", "BTCUSDT_261225"].pair
    'BTC/USDT:USDT-261225'
    """
    rows = exchange_info.get("symbols")
    if not isinstance(rows, list):
        raise BadMessage("BINANCE_FUTURES exchangeInfo has no list 'symbols'")
    return _catalogue("BINANCE_FUTURES", ((_binance_market, rows),))


def bybit_markets(pages: Mapping[str, Rows]) -> Catalogue:
    """Markets of Bybit out of `/v5/market/instruments-info`: rows by category (`linear`, `spot`).

    Spot and linear share ids, so the category decides the kind; `BTCUSDT` is two markets.

    >>> row = {"symbol": "BTCUSDT", "baseCoin": "BTC", "quoteCoin": "USDT", "status": "Trading"}
    >>> linear = {**row, "contractType": "LinearPerpetual", "settleCoin": "USDT",
    ...           "fundingInterval": 480}
    >>> catalogue = bybit_markets({"linear": [linear], "spot": [row]})
    >>> {market.pair: market.interval_hours for market in catalogue.markets}
    {'BTC/USDT:USDT': 8.0, 'BTC/USDT': None}
    """
    return _catalogue(
        "BYBIT",
        (
            (_bybit_contract, pages.get("linear", ())),
            (_bybit_spot, pages.get("spot", ())),
        ),
    )


class _Unfit(Exception):
    """A row that can't be made a market of; the text is the reason."""


def _catalogue(exchange: str, sources: Iterable[tuple[Callable[[Row], Market], Rows]]) -> Catalogue:
    markets: list[Market] = []
    quarantined: list[Quarantined] = []
    for parse, rows in sources:
        for row in rows:
            if not isinstance(row, Mapping):
                quarantined.append(Quarantined(f"{row!r:.40}", "no JSON object"))
                continue
            try:
                markets.append(parse(row))
            except _Unfit as unfit:
                quarantined.append(Quarantined(str(row.get("symbol")), str(unfit)))
    return Catalogue(exchange, markets, quarantined)


def _binance_market(row: Row) -> Market:
    kind = _kind(row, _BINANCE_KINDS)
    market_id = _text(row, "symbol")
    base, quote = _code(row, "baseAsset"), _code(row, "quoteAsset")
    settle = _code(row, "marginAsset")
    if settle != quote:
        raise _Unfit(f"settled in {settle}, not in {quote}: volumes are not in {base}")
    expiry_ms = _milliseconds(row, "deliveryDate") if kind == "future" else None
    if expiry_ms is not None:
        expected = f"{_text(row, 'pair')}_{_yymmdd(expiry_ms)}"
        if market_id != expected:
            raise _Unfit(f"delivery date and id differ: expected {expected}")
    return Market(
        exchange="BINANCE_FUTURES",
        kind=kind,
        id=market_id,
        pair=_unified(base, quote, settle, expiry_ms),
        base=base,
        quote=quote,
        settle=settle,
        expiry_ms=expiry_ms,
        active=row.get("status") == "TRADING",
        listed_ms=_milliseconds(row, "onboardDate") if row.get("onboardDate") else None,
        interval_hours=None,
    )


def _bybit_contract(row: Row) -> Market:
    kind = _kind(row, _BYBIT_KINDS)
    market_id = _text(row, "symbol")
    base, quote = _code(row, "baseCoin"), _code(row, "quoteCoin")
    settle = _code(row, "settleCoin")
    expiry_ms = _milliseconds(row, "deliveryTime") if kind == "future" else None
    if expiry_ms is not None and _bybit_date(market_id) != _yymmdd(expiry_ms):
        raise _Unfit(f"delivery date and id differ: expected {_yymmdd(expiry_ms)}")
    minutes = row.get("fundingInterval")
    return Market(
        exchange="BYBIT",
        kind=kind,
        id=market_id,
        pair=_unified(base, quote, settle, expiry_ms),
        base=base,
        quote=quote,
        settle=settle,
        expiry_ms=expiry_ms,
        active=row.get("status") == "Trading",
        listed_ms=_milliseconds(row, "launchTime") if row.get("launchTime") else None,
        interval_hours=minutes / 60 if isinstance(minutes, int) and minutes > 0 else None,
    )


def _bybit_spot(row: Row) -> Market:
    if "contractType" in row:
        raise _Unfit(f"contract type {row['contractType']!r} among the spot rows")
    base, quote = _code(row, "baseCoin"), _code(row, "quoteCoin")
    return Market(
        exchange="BYBIT",
        kind="spot",
        id=_text(row, "symbol"),
        pair=_unified(base, quote, None, None),
        base=base,
        quote=quote,
        settle=None,
        expiry_ms=None,
        active=row.get("status") == "Trading",
        listed_ms=None,
        interval_hours=None,
    )


def _kind(row: Row, kinds: Mapping[str, MarketKind]) -> MarketKind:
    contract_type = row.get("contractType")
    if not isinstance(contract_type, str) or contract_type not in kinds:
        raise _Unfit(f"contract type {contract_type!r}; known: {', '.join(kinds)}")
    return kinds[contract_type]


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if (
        not isinstance(value, str)
        or not re.fullmatch(r"[^\s\\]+", value)
        or not value.isprintable()
    ):
        raise _Unfit(f"{key} is {value!r:.100}, expected a name")
    return value


def _code(row: Row, key: str) -> str:
    # ccxt writes every currency in capitals; the id stays as it is.
    code = _text(row, key).upper()
    return _CCXT_CODES.get(code, code)


def _milliseconds(row: Row, key: str) -> int:
    value = row.get(key)
    if isinstance(value, str) and value.isdecimal() and len(value) <= 15:
        value = int(value)
    if not isinstance(value, int) or not 0 < value < _LATEST_MS:
        raise _Unfit(f"{key} is {value!r:.100}, expected milliseconds")
    return value


def _unified(base: str, quote: str, settle: str | None, expiry_ms: int | None) -> str:
    settled = f":{settle}" if settle is not None else ""
    dated = f"-{_yymmdd(expiry_ms)}" if expiry_ms is not None else ""
    return f"{base}/{quote}{settled}{dated}"


def _yymmdd(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%y%m%d")


def _bybit_date(market_id: str) -> str | None:
    match = re.fullmatch(r".+-(\d{1,2})([A-Z]{3})(\d{2})", market_id)
    if match is None or match[2] not in _MONTHS:
        return None
    return f"{match[3]}{_MONTHS.index(match[2]) + 1:02}{int(match[1]):02}"


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).upper()
