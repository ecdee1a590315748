"""The configuration file: text in, `Settings` or every fault of it out.

A fault names the key's path, the line, what was found and what is valid. What comes from the
environment or is a secret is never repeated in it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from marketdata.document import Document, KeyPath, dotted
from marketdata.errors import ConfigError, Fault
from marketdata.fields import shown, valid_of
from marketdata.settings import Section, Settings, names, sections

VARIABLE = "MARKETDATA_CONFIG"
DEFAULT = Path("config.yaml")

_SECTIONS = dict(sections())
_FORMS = {"sqlite", "influxdb", "a list", "by volume", "from Redis", "[key]"}
"""pydantic names the variant of a setting in an error's place, where the file has no key."""


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    read: Callable[[Path], str] = Path.read_text,
) -> Settings:
    """Read a configuration file.

    Parameters
    ----------
    path
        Left out: what MARKETDATA_CONFIG names, then `config.yaml`.
    environ, read
        As for `parse_config`.

    Raises
    ------
    ConfigError
        There is no such file, or it has faults; all of them at once.
    """
    named = path or Path(environ.get(VARIABLE) or DEFAULT)
    try:
        text = named.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text in UTF-8"
        valid = f"a file that can be read (--config, {VARIABLE}, {DEFAULT} in this order)"
        raise ConfigError(str(named), [Fault("the file", None, reason, valid)]) from None
    folder = named.absolute().parent
    settings = parse_config(text, source=str(named), folder=folder, environ=environ, read=read)
    return settings.from_file(named)


def parse_config(
    text: str,
    *,
    source: str,
    folder: Path,
    environ: Mapping[str, str],
    read: Callable[[Path], str] = Path.read_text,
) -> Settings:
    """Make settings of the text of a configuration.

    Parameters
    ----------
    source
        What messages call it.
    folder
        What its paths are relative to.
    environ
        What `${NAME}` stands for.
    read
        Reads the file of a secret.

    Raises
    ------
    ConfigError
        With every fault of the text.

    >>> settings = parse_config("exchanges: {BYBIT: {pairs: [BTC/USDT]}}",
    ...                         source="example", folder=Path("/srv"), environ={})
    >>> settings.store.kind, str(settings.store.path), settings.exchanges["BYBIT"].pairs
    ('sqlite', '/srv/var/market_data.db', ('BTC/USDT',))
    """
    parsed = Document(text, environ)
    if parsed.values is None and parsed.faults:
        raise ConfigError(source, parsed.faults)
    try:
        settings = Settings.model_validate(
            _with_defaults(parsed.values), context={"folder": folder, "read": read}
        )
    except ValidationError as error:
        found = [_fault(details, parsed) for details in error.errors(include_url=False)]
        faults = parsed.faults + [fault for fault in found if fault is not None]
        raise ConfigError(source, sorted(faults, key=lambda fault: fault.line or 0)) from None
    if parsed.faults:
        raise ConfigError(source, parsed.faults)
    return settings


def _with_defaults(values: Any) -> Any:
    """The values with the sections whose defaults depend on the folder."""
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        return values
    present = {key: value for key, value in values.items() if value is not None}
    return {**values, "store": {"kind": "sqlite"}, "outbox": {}, **present}


def _fault(details: ErrorDetails, parsed: Document) -> Fault | None:
    """The fault of one of pydantic's errors; None where the document's own fault says it."""
    place = details["loc"]
    path = _in_file(place, parsed.values)
    if details["type"].startswith("union_tag") and path == ("store",):
        path = ("store", "kind")
    origin = parsed.origin(path)
    # An empty list where none is allowed has elements whose own faults are told.
    emptied = details["type"] == "too_short" and details["input"]
    if emptied or origin in parsed.lost:
        return None
    found, valid = _found_and_valid(details, place)
    if origin in parsed.substituted:
        found = f"{parsed.substituted[origin]!r} out of the environment (not shown)"
    return Fault(dotted(path), parsed.line(path), found, valid)


def _in_file(place: KeyPath, values: Any) -> KeyPath:
    """The path of an error's place; a variant's name may be a key of the file as well."""
    path: list[str | int] = []
    for part in place:
        known = isinstance(values, Mapping) and part in values
        if known or part not in _FORMS:
            path.append(part)
            inside = known or (isinstance(values, list) and isinstance(part, int))
            values = values[part] if inside else None
    return tuple(path)


def _found_and_valid(details: ErrorDetails, place: KeyPath) -> tuple[str, str]:
    value = details["input"]
    section, name = _section(place[:-1]), str(place[-1]) if place else ""
    match details["type"]:
        case "fault":
            return details["ctx"]["found"], details["ctx"]["valid"]
        case "extra_forbidden" if section is not None:
            return "a setting that doesn't exist", _known(name, section)
        case "missing" if section is not None:
            return "nothing", _valid(section, name)
        case "union_tag_not_found" | "union_tag_invalid" if place == ("store",):
            kind = value.get("kind") if isinstance(value, Mapping) else value
            return shown(kind), "one of: sqlite, influxdb"
        case _ if section is not None and name:
            return shown(value), _valid(section, name)
        case _:
            below = _section(place) or Settings
            return shown(value), f"a section of: {', '.join(names(below))}"


def _section(place: KeyPath) -> type[Section] | None:
    path = tuple(str(part) for part in place)
    if path[:1] == ("exchanges",) and len(path) > 1:
        path = ("exchanges", "*", *path[2:])
    return _SECTIONS.get(path)


def _known(name: str, section: type[Section]) -> str:
    known = list(names(section))
    near = difflib.get_close_matches(name, known, n=1)
    return f"{f'{near[0]}, or ' if near else ''}one of: {', '.join(known)}"


def _valid(section: type[Section], name: str) -> str:
    """What a setting takes, in words."""
    field = section.model_fields[names(section)[name]]
    takes = valid_of(field.metadata)
    if takes is not None:
        return takes
    nested = next(below for path, below in _SECTIONS.items() if path[-1:] == (name,))
    return f"a section of: {', '.join(names(nested))}"
