"""The types that settings are made of: each says what it takes, and none shows a secret.

A value that doesn't fit raises pydantic's error of type `fault`, which holds what was found and
what is valid. The validation context is that of a file: its `folder`, and how to `read` the file
of a secret. Without one the values come from Python, where durations may be milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import SplitResult, urlsplit

from pydantic import GetCoreSchemaHandler, SecretStr, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from marketdata.document import key_name
from marketdata.exchanges import CHANNELS_OF, channels_of
from marketdata.schema import CHANNELS, Channel
from marketdata.units import format_bytes, parse_bytes, parse_duration_ms

SHOWN = 60
"""Characters of a wrong value that a message repeats."""

VIEWS = ("quantum", "bybit_spot", "coindcx_futures")
"""Presets of `redis.views`."""

_QUOTES = "USDT|USDC|FDUSD|USD1|USD|EUR|BTC|ETH|INR"


class Unfit(Exception):
    """A value that a field doesn't take; the text is what was found."""


@dataclass(frozen=True, slots=True)
class Valid:
    """What a list or a section takes, in words."""

    valid: str


@dataclass(frozen=True, slots=True)
class Takes:
    """What a field takes: in words, and as the function that turns a value into the field's."""

    valid: str
    check: Callable[[object, ValidationInfo], object]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._checked)

    def _checked(self, value: object, info: ValidationInfo) -> object:
        try:
            return self.check(value, info)
        except Unfit as unfit:
            raise_fault(str(unfit), self.valid)


def raise_fault(found: str, valid: str) -> NoReturn:
    """Refuse a value the way every field does."""
    raise PydanticCustomError(
        "fault", "found {found}; valid: {valid}", {"found": found, "valid": valid}
    ) from None


def shown(value: object) -> str:
    """A value as a message shows it: short, and without the password of a URL.

    >>> shown("http://user:pass@host/path"), shown(True), shown({"top": 5})
    ("'http://***@host/path'", 'true', 'a section (top)')
    """
    if isinstance(value, Mapping):
        keys = ", ".join(key_name(str(key)) for key in value)
        return f"a section ({keys})" if value else "an empty section"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    text = re.sub(r"//[^/\s]*@", "//***@", repr(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _text(pattern: str, valid: str) -> Takes:
    def check(value: object, info: ValidationInfo) -> str:
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            raise Unfit(shown(value))
        return value

    return Takes(valid, check)


def _one_of(names: Iterable[str]) -> Takes:
    known = tuple(names)

    def check(value: object, info: ValidationInfo) -> str:
        if value not in known:
            raise Unfit(shown(value))
        return str(value)

    return Takes(f"one of: {', '.join(known)}", check)


def _whole(low: int, high: int) -> Takes:
    def check(value: object, info: ValidationInfo) -> int:
        digits = isinstance(value, str) and value.isdecimal() and len(value) <= len(str(high))
        number = int(value) if isinstance(value, str) and digits else value
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise Unfit(shown(value))
        return number

    return Takes(f"a whole number from {low} to {high}", check)


def _share(value: object, info: ValidationInfo) -> float:
    try:
        share = float(value) if isinstance(value, str | int | float) else 0.0
    except (ValueError, OverflowError):
        share = 0.0
    if isinstance(value, bool) or not 0 < share <= 1:
        raise Unfit(shown(value))
    return share


def _duration(low: str, high: str) -> Takes:
    low_ms, high_ms = parse_duration_ms(low), parse_duration_ms(high)

    def check(value: object, info: ValidationInfo) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and info.context is None:
            duration_ms = value
        else:
            duration_ms = _parsed(parse_duration_ms, value)
        if not low_ms <= duration_ms <= high_ms:
            raise Unfit(shown(value))
        return duration_ms

    return Takes(f"a duration from {low} to {high}, such as 500ms, 10s, 5m, 2h, 7d", check)


def _retention(low: str) -> Takes:
    bounded = _duration(low, "36500d")

    def check(value: object, info: ValidationInfo) -> object:
        return None if value in ("forever", None) else bounded.check(value, info)

    return Takes(f"a duration from {low} up, such as 7d, or: forever", check)


def _size(low: int) -> Takes:
    def check(value: object, info: ValidationInfo) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and info.context is None:
            size = value
        else:
            size = _parsed(parse_bytes, value)
        if size < low:
            raise Unfit(shown(value))
        return size

    return Takes(f"a size from {format_bytes(low)} up, such as 512MiB, 4GiB", check)


def _parsed(parse: Callable[[str], int], value: object) -> int:
    try:
        return parse(value if isinstance(value, str) else "")
    except ValueError:
        raise Unfit(shown(value)) from None


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise Unfit(shown(value))
    folder: Path = (info.context or {}).get("folder", Path())
    try:
        return folder / Path(value).expanduser()
    except RuntimeError:
        raise Unfit(f"{shown(value)}, the home of a user who isn't known") from None


def _secret(value: object, info: ValidationInfo) -> SecretStr:
    if isinstance(value, SecretStr):
        return value
    if isinstance(value, Mapping) and set(value) == {"file"}:
        value = _secret_of_file(_path(value["file"], info), info)
    if not isinstance(value, str):
        raise Unfit(f"{'a section' if isinstance(value, Mapping) else 'no text'} (not shown)")
    if not value.strip() or value != value.strip():
        raise Unfit("a secret that is empty or has blanks around it")
    return SecretStr(value)


def _secret_of_file(path: Path, info: ValidationInfo) -> str:
    read: Callable[[Path], str] = (info.context or {}).get("read", Path.read_text)
    try:
        return read(path).strip()
    except (OSError, ValueError) as error:
        raise Unfit(f"the file {path}, which can't be read ({type(error).__name__})") from None


def _address(*schemes: str, bare: bool = False) -> Takes:
    """A URL without credentials; `bare`: of scheme, host and port only."""

    def check(value: object, info: ValidationInfo) -> str:
        parts = _split(value, schemes)
        if parts.username or parts.password:
            raise Unfit("a URL with a user or a password in it")
        if bare and (parts.path.strip("/") or parts.query or parts.fragment):
            raise Unfit("a URL with a path or a query")
        return str(value).rstrip("/")

    ends = ", without a path" if bare else ""
    return Takes(f"a URL that starts with {' or '.join(f'{s}://' for s in schemes)}{ends}", check)


def _secret_address(*schemes: str) -> Takes:
    """A URL that may hold a password, so all of it is a secret."""

    def check(value: object, info: ValidationInfo) -> SecretStr:
        secret = _secret(value, info)
        try:
            _split(secret.get_secret_value(), schemes)
        except Unfit:
            if isinstance(value, Mapping):  # all that the file holds is a secret
                raise Unfit("a file with another text (not shown)") from None
            raise
        return secret

    return Takes(f"a URL that starts with {' or '.join(f'{s}://' for s in schemes)}", check)


def _split(value: object, schemes: tuple[str, ...]) -> SplitResult:
    if not isinstance(value, str):
        raise Unfit(shown(value))
    try:
        parts = urlsplit(value)
        place = parts.path if parts.scheme == "unix" else parts.hostname
        possible = parts.port != 0 and not re.search(r"\s", value)
    except ValueError:
        possible = False
    if not possible:
        raise Unfit("a URL with an impossible host or port")
    if parts.scheme not in schemes:
        raise Unfit(f"{parts.scheme}:// as the scheme" if parts.scheme else "a text that is no URL")
    if not place:
        raise Unfit("a URL without a host")
    return parts


def _pair(value: object, info: ValidationInfo) -> str:
    if isinstance(value, str) and re.fullmatch(_PAIR, value):
        return value
    raise Unfit(shown(value) + _meant(value))


def _meant(value: object) -> str:
    letters = re.sub(r"[-_/: .]", "", value).upper() if isinstance(value, str) else ""
    match = re.fullmatch(rf"(\w+?)({_QUOTES})(?:\2)?(?:PERP|SWAP)?", letters)
    if match is None:
        return ""
    base, quote = match[1], match[2]
    return f" (perhaps {base}/{quote}:{quote}, the perpetual, or {base}/{quote}, spot)"


def _channel(value: object, info: ValidationInfo) -> str:
    # The settings of an exchange have its id before its channels.
    exchange = (info.data or {}).get("id", "")
    given = channels_of(exchange)
    if value not in given:
        raise_fault(shown(value), f"{exchange or 'the exchange'} gives {', '.join(given)}")
    return str(value)


_PAIR = r"[^\s/:a-z]+/[A-Z0-9]+(:[A-Z0-9]+(-\d{6})?)?"

Text = Annotated[str, _text(r"\S(.*\S)?", "a text that isn't empty")]
Host = Annotated[str, _text(r"[^\s/:]+|[0-9A-Fa-f:]+", "an address or a name, such as 127.0.0.1")]
Currency = Annotated[str, _text(r"[A-Z0-9]+", "a currency, such as USDT")]
RedisKey = Annotated[str, _text(r"\S+", "a key of Redis, `*` where the pair is")]
Pair = Annotated[
    str,
    Takes("a pair as ccxt names it: BTC/USDT:USDT (perpetual), BTC/USDT (spot)", _pair),
]
ChannelName = Annotated[Channel, Takes(f"of {', '.join(CHANNELS)}", _channel)]
ExchangeId = Annotated[str, _one_of(CHANNELS_OF)]
View = Annotated[str, _one_of(VIEWS)]
Port = Annotated[int, _whole(1, 65_535)]
Count = Annotated[int, _whole(1, 1_000)]
Share = Annotated[float, Takes("a number above 0, at most 1", _share)]
TickPeriodMs = Annotated[int, _duration("100ms", "60s")]
LookbackMs = Annotated[int, _duration("0s", "30d")]
RetentionMs = Annotated[int | None, _retention("1h")]
SegmentMs = Annotated[int, _duration("10s", "1d")]
CaptureBytes = Annotated[int, _size(64 << 20)]
MaxBytes = Annotated[int, _size(1 << 20)]
FilePath = Annotated[Path, Takes("a path", _path)]
SECRET = Takes("a text in quotes, ${NAME} from the environment, or {file: path}", _secret)
Secret = Annotated[SecretStr, SECRET]
HttpUrl = Annotated[str, _address("http", "https")]
RestUrl = Annotated[str, _address("http", "https", bare=True)]
WebSocketUrl = Annotated[str, _address("ws", "wss", bare=True)]
ProxyUrl = Annotated[SecretStr, _secret_address("http", "https")]
RedisUrl = Annotated[SecretStr, _secret_address("redis", "rediss", "unix")]


def valid_of(metadata: list[Any]) -> str | None:
    """What a field takes in words, out of its pydantic metadata."""
    return next((item.valid for item in metadata if isinstance(item, Takes | Valid)), None)
