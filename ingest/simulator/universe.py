"""What the simulated exchanges list: ordinary contracts, and the ones that break naive clients.

Among the traps: Chinese symbols, `TRADIFI_PERPETUAL`, dated quarterlies, contracts in settlement,
USDC contracts, ids that look like suffixes (`BUSDT`, `4USDT`), spot ids equal to perpetual ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

BINANCE = "BINANCE_FUTURES"
BYBIT = "BYBIT"

Kind = Literal["perpetual", "future", "spot"]

_PRICES = """
BTC 83084 ETH 2777 SOL 141.2 XRP 2.21 BNB 862 DOGE 0.1556 1000PEPE 0.00463 ADA 0.4421 SUI 1.482
LINK 12.93 AVAX 13.62 LTC 88.4 BCH 512 ENA 0.2481 TRX 0.2846 HYPE 34.7 ZEC 612 TON 1.62 NEAR 1.93
DOT 2.341 UNI 6.12 AAVE 168.3 FIL 1.683 ARB 0.2141 OP 0.3216 APT 2.51 ATOM 2.572 ETC 14.1
ICP 4.31 INJ 5.81 TIA 0.641 SEI 0.1387 WLD 0.618 STRK 0.1432 LDO 0.663 CRV 0.4182 1000SHIB 0.00851
1000BONK 0.01014 1000FLOKI 0.0471 WIF 0.372 JUP 0.2461 PYTH 0.0791 ONDO 0.5031 PENDLE 2.413
FET 0.2641 RENDER 1.76 GRT 0.0542 SAND 0.1731 MANA 0.1842 AXS 1.124 GALA 0.00823 APE 0.2941
CHZ 0.0301 ENJ 0.0334 THETA 0.392 VET 0.01432 ALGO 0.1402 XLM 0.2453 HBAR 0.1431 EOS 0.482
XTZ 0.5412 NEO 4.212 QTUM 1.612 IOTA 0.1053 ZIL 0.00571 KSM 8.91 EGLD 8.02 FLOW 0.2431
1INCH 0.1712 COMP 32.7 SNX 0.4832 YFI 4210 SUSHI 0.3681 BAT 0.2162 ZRX 0.1381 KNC 0.2312
LRC 0.0561 ENS 11.42 IMX 0.2871 GMX 9.13 DYDX 0.2161 CAKE 2.352 BLUR 0.0342 MAGIC 0.0961
JTO 0.4021 ORDI 4.36 1000SATS 0.0000173 RUNE 0.6612 STX 0.3101 KAVA 0.1132 ROSE 0.01643
CFX 0.0721 MINA 0.0812 ANKR 0.00731 CELO 0.1841 ONE 0.00412 ZEN 13.62 DASH 63.4 XMR 391.2
MASK 0.6631 HOT 0.000542 RVN 0.00831 IOST 0.001692 SKL 0.01513 STORJ 0.1531 BAND 0.3812
RSR 0.00421 TRB 21.93 UMA 0.8012 API3 0.5182 GTC 0.1452 PEOPLE 0.01021 LPT 4.721 AR 4.11
WOO 0.0312 ID 0.0701 EDU 0.1521 ARKM 0.2512 CYBER 0.8231 NMR 11.21 POL 0.1432 ZK 0.0412
ZRO 1.351 IO 0.1782 NOT 0.000612 BOME 0.000693 ETHFI 0.8931 W 0.0432 ALT 0.01412 MANTA 0.0912
DYM 0.0881 AEVO 0.0422 PIXEL 0.01131 PORTAL 0.02012 AI 0.0481 XAI 0.0182 NFP 0.0281 ACE 0.2312
MOVE 0.0531 ME 0.3712 VIRTUAL 0.941 AIXBT 0.0432 GRIFFAIN 0.0212 ZEREBRO 0.0173 FARTCOIN 0.2812
PNUT 0.0901 ACT 0.02231 GOAT 0.0421 MOODENG 0.0712 TURBO 0.00201 MEW 0.001203 BRETT 0.01742
POPCAT 0.1132 NEIRO 0.000132 DOGS 0.0000481 HMSTR 0.000252 CATI 0.0731 EIGEN 0.5612 SCR 0.1121
KAITO 0.6013 BERA 1.021 IP 2.413 LAYER 0.1981 SHELL 0.0591 TRUMP 6.42 MELANIA 0.1091 S 0.1023
SONIC 0.1012 ANIME 0.00612 VINE 0.0312 INIT 0.0991 WCT 0.1021 SIGN 0.0341 B 0.2136 4 0.0271
0G 1.142 1MBABYDOGE 0.000712 1000000MOG 0.3412 BTCDOM 5021 PUMP 0.00241 ASTER 1.162 XPL 0.2281
LINEA 0.01123 AVNT 0.3341 MIRA 0.1321 FF 0.0981 ZORA 0.0521
币安人生 0.4762 龙虾 0.0213 哈基米 0.0187
"""

PRICES = {
    base: float(price)
    for base, price in zip(_PRICES.split()[::2], _PRICES.split()[1::2], strict=True)
}
"""Price in USDT around which each asset moves; the order is that of activity."""

_THIN = {
    "B": 0.5,
    "4": 0.8,
    "龙虾": 0.35,
    "哈基米": 0.6,
    "ZEREBRO": 0.9,
    "BTCDOM": 0.5,
    "1MBABYDOGE": 1.2,
}
"""Trades a minute of pairs that have whole minutes without a trade."""

_EIGHT_HOURLY = frozenset(
    (
        "BTC", "ETH", "BNB", "XRP", "SOL", "DOGE", "ADA", "LTC",
        "BCH", "LINK", "TRX", "ETC", "XLM", "DOT", "AVAX",
    )
)  # fmt: skip
_HOURLY = frozenset(("TRB", "IOST"))
_TRADFI = {
    "XAU": (4103.0, "COMMODITY"),
    "XAG": (59.6, "COMMODITY"),
    "TSLA": (412.0, "EQUITY"),
    "NVDA": (188.0, "EQUITY"),
}
_BYBIT_SPOT_COUNT = 60
_BYBIT_LINEAR_COUNT = 130
_LISTED_MS = 1_569_398_400_000
FAR_MS = 2**53
NEVER_MS = 4_133_404_800_000
"""The delivery date that Binance gives to contracts without one."""


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """One listed instrument. Prices are whole numbers of `10**-price_digits`, quantities of
    `10**-qty_digits`, so that every sum is exact.

    >>> contract = next(c for c in universe(1_795_000_000_000) if c.id == "BTCUSDT")
    >>> contract.price(8_308_490), contract.quantity(102_437), contract.amount(851_429_261_220)
    ('83084.90', '102.437', '8514292.61220')
    """

    exchange: str
    kind: Kind
    id: str
    base: str
    quote: str
    settle: str | None
    anchor: float
    price_digits: int
    tick: int
    qty_digits: int
    trades_per_minute: float
    interval_hours: int | None = None
    contract_type: str = ""
    underlying: str = "COIN"
    status: str = "TRADING"
    listed_ms: int = _LISTED_MS
    expiry_ms: int | None = None
    asset: str = ""
    """Contracts of one asset follow one price."""
    earlier_intervals: tuple[tuple[int, int], ...] = ()
    """Funding intervals of the past: the last settlement that each led to, and its hours."""
    silent: bool = False
    """The contract's own streams send nothing any more."""

    @property
    def tradfi(self) -> bool:
        return self.contract_type == "TRADIFI_PERPETUAL"

    @property
    def coin_margined(self) -> bool:
        return self.settle is not None and self.settle == self.base

    @property
    def active(self) -> bool:
        return self.status == "TRADING"

    def all_intervals(self) -> tuple[tuple[int, int], ...]:
        """Past and present funding intervals: the last settlement of each, and its hours."""
        return (*self.earlier_intervals, (FAR_MS, self.interval_hours or 8))

    def price(self, units: int) -> str:
        return fixed(units, self.price_digits)

    def quantity(self, units: int) -> str:
        return fixed(units, self.qty_digits)

    def amount(self, units: int) -> str:
        """Price times quantity, in the quote currency."""
        return fixed(units, self.price_digits + self.qty_digits)


def fixed(units: int, digits: int) -> str:
    """`units * 10**-digits` with all its digits.

    >>> fixed(-3657, 8), fixed(7, 0), fixed(1200, 2)
    ('-0.00003657', '7', '12.00')
    """
    if not digits:
        return str(units)
    text = str(abs(units)).zfill(digits + 1)
    return f"{'-' if units < 0 else ''}{text[:-digits]}.{text[-digits:]}"


def universe(as_of_ms: int) -> tuple[Contract, ...]:
    """Everything that is listed at `as_of_ms`; only the dated contracts depend on it.

    >>> [c.id for c in universe(1_795_000_000_000) if c.kind == "future"][:2]
    ['BTCUSDT_261225', 'BTCUSDT_270326']
    """
    quarters = _next_quarters(as_of_ms)
    return (*_binance(quarters), *_bybit_linear(quarters), *_bybit_spot())


def _binance(quarters: tuple[date, date]) -> Iterator[Contract]:
    for rank, base in enumerate(PRICES):
        yield make_contract(BINANCE, "perpetual", f"{base}USDT", base, "USDT", rank)
    for base in ("BTC", "ETH", "SOL"):
        yield make_contract(BINANCE, "perpetual", f"{base}USDC", base, "USDC", 60)
    for base, (price, underlying) in _TRADFI.items():
        yield make_contract(
            BINANCE, "perpetual", f"{base}USDT", base, "USDT", 40,
            anchor=price, contract_type="TRADIFI_PERPETUAL", underlying=underlying,
        )  # fmt: skip
    for base in ("BTC", "ETH"):
        for day, word in zip(quarters, ("CURRENT_QUARTER", "NEXT_QUARTER"), strict=True):
            yield make_contract(
                BINANCE, "future", f"{base}USDT_{day:%y%m%d}", base, "USDT", 150,
                anchor=PRICES[base] * 1.004, contract_type=word, expiry_ms=_delivery_ms(day),
            )  # fmt: skip
    for base, price, delivered_ms in (
        ("OMG", 0.106, 1_738_314_000_000),
        ("FTM", 0.41, 1_736_758_800_000),
    ):
        yield make_contract(
            BINANCE, "perpetual", f"{base}USDT", base, "USDT", 100,
            anchor=price, status="SETTLING", expiry_ms=delivered_ms,
        )  # fmt: skip
    for base in ("BTC", "ETH", "SUI"):
        yield make_contract(BINANCE, "perpetual", f"{base}USD_PERP", base, "USD", 100, settle=base)


def _bybit_linear(quarters: tuple[date, date]) -> Iterator[Contract]:
    for rank, base in enumerate(list(PRICES)[:_BYBIT_LINEAR_COUNT]):
        name = "SHIB1000" if base == "1000SHIB" else base
        yield make_contract(BYBIT, "perpetual", f"{name}USDT", name, "USDT", rank, asset=base)
    for base in ("BTC", "ETH"):
        yield make_contract(BYBIT, "perpetual", f"{base}PERP", base, "USDC", 60)
        for day in quarters:
            yield make_contract(
                BYBIT, "future", f"{base}USDT-{day:%d%b%y}".upper(), base, "USDT", 150,
                anchor=PRICES[base] * 1.004, contract_type="LinearFutures",
                expiry_ms=_delivery_ms(day),
            )  # fmt: skip


def _bybit_spot() -> Iterator[Contract]:
    plain = [base for base in PRICES if not base.startswith("1000")]
    for rank, base in enumerate(plain[:_BYBIT_SPOT_COUNT]):
        yield make_contract(BYBIT, "spot", f"{base}USDT", base, "USDT", rank + 20)
    for base, quote in (("BTC", "USDC"), ("ETH", "USDC"), ("BTC", "USDE")):
        yield make_contract(BYBIT, "spot", f"{base}{quote}", base, quote, 120)


def make_contract(
    exchange: str,
    kind: Kind,
    id: str,
    base: str,
    quote: str,
    rank: int,
    *,
    anchor: float | None = None,
    asset: str | None = None,
    contract_type: str | None = None,
    settle: str | None = None,
    underlying: str = "COIN",
    status: str = "TRADING",
    expiry_ms: int | None = None,
    listed_ms: int = _LISTED_MS,
) -> Contract:
    """A contract with what follows from its price, its `rank` of activity and its asset."""
    asset = base if asset is None else asset
    price = PRICES[asset] if anchor is None else anchor
    price_digits, tick, qty_digits = _precision(price)
    if kind == "spot":
        qty_digits = 6 if price >= 100 else 2
    if contract_type is None:
        contract_type = {
            "spot": "", "perpetual": "PERPETUAL" if exchange == BINANCE else "LinearPerpetual",
        }[kind]  # fmt: skip
    return Contract(
        exchange=exchange,
        kind=kind,
        id=id,
        base=base,
        quote=quote,
        settle=None if kind == "spot" else settle or quote,
        anchor=price,
        price_digits=price_digits,
        tick=tick,
        qty_digits=qty_digits,
        trades_per_minute=_THIN.get(asset, 72 / (1 + 0.04 * rank)) if status == "TRADING" else 0,
        interval_hours=_interval_hours(asset) if kind == "perpetual" else None,
        contract_type=contract_type,
        underlying=underlying,
        status=status,
        listed_ms=listed_ms,
        expiry_ms=expiry_ms,
        asset=asset,
    )


def _precision(price: float) -> tuple[int, int, int]:
    """Price digits, tick in units of the last digit, quantity digits."""
    if price >= 10_000:
        return 2, 10, 3
    for bound, digits, qty_digits in (
        (1_000, 2, 3), (100, 2, 2), (10, 3, 1), (1, 4, 1), (0.1, 5, 0), (0.01, 6, 0),
    ):  # fmt: skip
        if price >= bound:
            return digits, 1, qty_digits
    return 8, 1, 0


def _interval_hours(asset: str) -> int:
    if asset in _HOURLY:
        return 1
    return 8 if asset in _EIGHT_HOURLY else 4


def _next_quarters(as_of_ms: int) -> tuple[date, date]:
    """The delivery days of the current and the next quarter: last Fridays of March, June, …"""
    year = datetime.fromtimestamp(as_of_ms / 1000, UTC).year
    fridays = [_last_friday(y, month) for y in (year, year + 1) for month in (3, 6, 9, 12)]
    current, following = [day for day in fridays if _delivery_ms(day) > as_of_ms][:2]
    return current, following


def _last_friday(year: int, month: int) -> date:
    end = date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)
    return end - timedelta(days=(end.weekday() - 4) % 7)


def _delivery_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 8, tzinfo=UTC).timestamp() * 1000)
