"""Every setting of the platform: frozen models with defaults, checked when they are made.

A file becomes `Settings` through `marketdata.config`. A field whose name ends in `_ms` is written
without the ending in the file, as a duration (`lookback: 2d`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    SecretStr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from marketdata import fields
from marketdata.exchanges import CHANNELS_OF, channels_of
from marketdata.fields import Valid, raise_fault
from marketdata.schema import CHANNELS


class Section(BaseModel):
    """A mapping of the file. An empty value (`redis:`) is a setting that is left out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        known = names(cls)
        return {name: v for name, v in values.items() if v is not None or name not in known}


class SqliteTicks(Section):
    """How the ticks (funding, mark and last prices) are kept in SQLite."""

    every_ms: fields.TickPeriodMs = Field(
        10_000, alias="every", description="one tick at most per pair and this time"
    )
    retention_ms: fields.RetentionMs = Field(
        7 * 86_400_000, alias="retention", description="older ticks are deleted"
    )


class InfluxTicks(Section):
    """How the ticks (funding, mark and last prices) are kept in InfluxDB."""

    every_ms: fields.TickPeriodMs = Field(
        1_000, alias="every", description="one tick at most per pair and this time"
    )
    bucket: fields.Text | None = Field(
        None, description="the ticks' own bucket; left out: the candles' bucket"
    )
    retention_ms: fields.RetentionMs = Field(
        None,
        alias="retention",
        description="older ticks expire; other than forever needs a bucket of their own",
    )

    @field_validator("retention_ms")
    @classmethod
    def _expires_alone(cls, retention_ms: int | None, info: ValidationInfo) -> int | None:
        # InfluxDB keeps retention per bucket: the candles would expire with the ticks.
        if retention_ms is not None and "bucket" in info.data and info.data["bucket"] is None:
            raise_fault(
                "ticks that expire, in the candles' bucket", "forever, or also store.ticks.bucket"
            )
        return retention_ms


class SqliteStore(Section):
    """The embedded store: one file."""

    kind: Literal["sqlite"] = Field("sqlite", description="the embedded store: one file")
    path: fields.FilePath = Field(
        Path("var/market_data.db"), validate_default=True, description="the database's file"
    )
    ticks: SqliteTicks = Field(
        default_factory=SqliteTicks, description="funding, mark and last prices"
    )


class InfluxStore(Section):
    """An InfluxDB 2.x."""

    kind: Literal["influxdb"] = Field("influxdb", description="a server of InfluxDB 2.x")
    url: fields.HttpUrl = Field(description="the server")
    org: fields.Text = Field(description="the organization")
    bucket: fields.Text = Field(description="candles, settlements and gaps")
    token: fields.Secret = Field(description="writes for the service, reads for readers")
    ticks: InfluxTicks = Field(
        default_factory=InfluxTicks, description="funding, mark and last prices"
    )

    @field_validator("ticks")
    @classmethod
    def _has_own_bucket(cls, ticks: InfluxTicks, info: ValidationInfo) -> InfluxTicks:
        if ticks.bucket is not None and ticks.bucket == info.data.get("bucket"):
            raise_fault("the candles' bucket as ticks.bucket", "another bucket, or none")
        return ticks


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


Store = Annotated[
    Annotated[SqliteStore, Tag("sqlite")] | Annotated[InfluxStore, Tag("influxdb")],
    Discriminator(_kind),
]


class RedisSettings(Section):
    """The hot cache."""

    url: fields.RedisUrl = Field(description="the server")
    views: Annotated[tuple[fields.View, ...], Valid(f"a list of: {', '.join(fields.VIEWS)}")] = (
        Field((), description="key layouts of other bots that are kept up to date as well")
    )


class OutboxSettings(Section):
    """What is on disk until the store has it."""

    path: fields.FilePath = Field(
        Path("var/outbox.db"),
        validate_default=True,
        description="the outbox's file; what is known of the exchanges is kept beside it",
    )
    max_bytes: fields.MaxBytes = Field(
        4 << 30, description="largest size; beyond it the oldest ticks go, candles never"
    )


class ApiSettings(Section):
    """What `readers serve` binds."""

    host: fields.Host = Field("127.0.0.1", description="address; public only with a token")
    port: fields.Port = Field(8888, description="TCP port")
    token: fields.Secret | None = Field(
        None, validate_default=True, description="what clients have to present"
    )

    @field_validator("token", mode="wrap")
    @classmethod
    def _public_only_with_token(
        cls, value: Any, handler: Any, info: ValidationInfo
    ) -> SecretStr | None:
        host = info.data.get("host")
        if value is None and host is not None and not fields.is_loopback(host):
            raise_fault(
                "nothing, though api.host is reachable from outside",
                f"{fields.SECRET.valid}; or a loopback address as api.host",
            )
        secret: SecretStr | None = handler(value)
        return secret


class MonitorSettings(Section):
    """What the service binds for /health, /status and /metrics."""

    host: fields.Host = Field("127.0.0.1", description="address")
    port: fields.Port = Field(9108, description="TCP port")


class RepairSettings(Section):
    """How gaps are filled by REST."""

    lookback_ms: fields.LookbackMs = Field(
        2 * 86_400_000, alias="lookback", description="how far back a start looks for gaps"
    )
    weight_share: fields.Share = Field(0.5, description="share of the exchange's request limit")


class CaptureSettings(Section):
    """What the exchanges send, kept as it came."""

    path: fields.FilePath = Field(
        Path("var/capture"), validate_default=True, description="the folder of its segments"
    )
    max_bytes: fields.CaptureBytes = Field(
        2 << 30, description="largest size of all segments; beyond it the oldest go"
    )
    segment_ms: fields.SegmentMs = Field(
        300_000, alias="segment", description="how much time one segment has"
    )


class TopPairs(Section):
    """The perpetuals of a quote currency with the largest volume of the last 24 h."""

    quote: fields.Currency = Field(description="quote currency of the pairs")
    top: fields.Count = Field(description="how many, by volume of the last 24 h")


class RedisPairs(Section):
    """Pairs that another program names in Redis."""

    redis: Annotated[tuple[fields.RedisKey, ...], Valid("a list of keys")] = Field(
        min_length=1, description="keys that name pairs; the first that has any counts"
    )
    fallback: Annotated[tuple[fields.Pair, ...], Valid("a list of pairs")] = Field(
        min_length=1, description="the pairs while Redis has none"
    )


PairList = tuple[fields.Pair, ...]
PAIRS_VALID = Valid(
    "a list of pairs · {quote: USDT, top: 120} · {redis: [keys], fallback: [pairs]}"
)


def _form_of_pairs(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "from Redis" if value.keys() & {"redis", "fallback"} else "by volume"
    if isinstance(value, TopPairs):
        return "by volume"
    return "from Redis" if isinstance(value, RedisPairs) else None


Pairs = Annotated[
    Annotated[PairList, Tag("a list")]
    | Annotated[TopPairs, Tag("by volume")]
    | Annotated[RedisPairs, Tag("from Redis")],
    Discriminator(_form_of_pairs),
]


class ExchangeSettings(Section):
    """What is collected of one exchange, and on which way."""

    id: str = Field(
        "", exclude=True, description="the exchange, as the key in `exchanges` names it"
    )
    channels: Annotated[
        tuple[fields.ChannelName, ...], Valid(f"a list of: {', '.join(CHANNELS)}")
    ] = Field(
        default_factory=lambda data: channels_of(data["id"]),
        min_length=1,
        description="what is collected; left out: all that the exchange gives",
    )
    pairs: Annotated[Pairs, PAIRS_VALID] = Field(
        description="ccxt names; those that the exchange doesn't list are left out"
    )
    ws_url: fields.WebSocketUrl | None = Field(
        None, description="replaces scheme, host and port of every WebSocket endpoint"
    )
    rest_url: fields.RestUrl | None = Field(
        None, description="replaces scheme, host and port of every REST endpoint"
    )
    http_proxy: fields.ProxyUrl | None = Field(
        None, description="every request and stream goes through it"
    )

    @field_validator("pairs")
    @classmethod
    def _some_and_each_once(cls, pairs: PairList | TopPairs | RedisPairs) -> Any:
        if pairs == ():
            raise_fault("an empty list", PAIRS_VALID.valid)
        if isinstance(pairs, tuple):
            counts = Counter(pairs)
            twice = [pair for pair in counts if counts[pair] > 1]
            if twice:
                raise_fault(f"{', '.join(twice[:3])} twice", "each pair once")
        return pairs


class Settings(Section):
    """The whole configuration. `source` is the file that it came from."""

    store: Store = Field(default_factory=SqliteStore, description="where rows are kept")
    redis: RedisSettings | None = Field(None, description="the hot cache; left out: none")
    outbox: OutboxSettings = Field(
        default_factory=OutboxSettings, description="rows that wait for the store"
    )
    api: ApiSettings = Field(default_factory=ApiSettings, description="what `readers serve` binds")
    monitor: MonitorSettings = Field(
        default_factory=MonitorSettings, description="the service's own port"
    )
    repair: RepairSettings = Field(
        default_factory=RepairSettings, description="gaps are filled by REST"
    )
    capture: CaptureSettings | None = Field(
        None, description="raw messages, kept to be replayed; left out: none"
    )
    exchanges: Annotated[
        dict[fields.ExchangeId, ExchangeSettings],
        Valid(f"a section for each exchange, of: {', '.join(CHANNELS_OF)}"),
    ] = Field(min_length=1, description="what is collected; the first is the readers' default")
    _source: Path | None = PrivateAttr(None)

    @property
    def source(self) -> Path | None:
        return self._source

    def from_file(self, source: Path) -> Settings:
        """The same settings, which know their file."""
        settings = self.model_copy()
        settings._source = source
        return settings

    @field_validator("exchanges", mode="before")
    @classmethod
    def _tell_each_its_id(cls, exchanges: Any) -> Any:
        if not isinstance(exchanges, Mapping):
            return exchanges
        if any(isinstance(value, Mapping) and "id" in value for value in exchanges.values()):
            raise_fault("a setting `id`", "the id as the exchange's key")
        return {
            name: {"id": name, **value} if isinstance(value, Mapping) else value
            for name, value in exchanges.items()
        }


def names(section: type[Section]) -> dict[str, str]:
    """The settings of a section as a file writes them, and the fields that hold them.

    >>> names(RepairSettings)
    {'lookback': 'lookback_ms', 'weight_share': 'weight_share'}
    """
    return {
        field.alias or name: name
        for name, field in section.model_fields.items()
        if not field.exclude
    }


def sections(
    section: type[Section] = Settings, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    """Every section with the path to it: the file's keys, `*` for an exchange, and the variant's
    tag where a key has several forms.

    >>> [path for path, section in sections() if section is RedisPairs]
    [('exchanges', '*', 'pairs', 'from Redis')]
    """
    yield path, section
    for name, field in names(section).items():
        annotation: Any = section.model_fields[field].annotation
        for below, nested in _nested(annotation):
            yield from sections(nested, (*path, name, *below))


def _nested(annotation: Any) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield (), annotation
        return
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        tags = tuple(item.tag for item in inner[1:] if isinstance(item, Tag))
        for below, nested in _nested(inner[0]):
            yield (*tags, *below), nested
    elif origin is not tuple:
        keys = ("*",) if origin is dict else ()
        for argument in inner:
            for below, nested in _nested(argument):
                yield (*keys, *below), nested
