"""The tables of docs/settings.md as the models have them: the test compares, `-m` prints them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from marketdata.fields import valid_of
from marketdata.settings import Section, names, sections
from marketdata.units import format_bytes, format_duration

_FORMS = {
    "sqlite": "`store` (SQLite)",
    "influxdb": "`store` (InfluxDB)",
    "by volume": "`exchanges.*.pairs` by volume",
    "from Redis": "`exchanges.*.pairs` out of Redis",
}


def tables() -> dict[str, list[str]]:
    """The rows of every section's table, by heading."""
    return {_heading(path): _rows(section) for path, section in sections()}


def _heading(path: tuple[str, ...]) -> str:
    if not path:
        return "The file"
    keys = [part for part in path if part not in _FORMS]
    form = next((_FORMS[part] for part in path if part in _FORMS), None)
    if form is None:
        return f"`{'.'.join(keys)}`"
    return form.replace("store", "store.ticks") if keys[-1] == "ticks" else form


def _rows(section: type[Section]) -> list[str]:
    fields = section.model_fields
    return [_row(name, field, fields[field]) for name, field in names(section).items()]


def _row(name: str, attribute: str, field: FieldInfo) -> str:
    valid = (valid_of(field.metadata) or _valid_inside(field)).replace("|", "\\|")
    return f"| `{name}` | {_default(attribute, field)} | {valid} | {field.description} |"


def _valid_inside(field: FieldInfo) -> str:
    """What an optional or a nested setting takes."""
    for part in getattr(field.annotation, "__args__", ()):
        valid = valid_of(list(getattr(part, "__metadata__", ())))
        if valid is not None:
            return valid
    literal = getattr(field.annotation, "__args__", None)
    is_kind = literal is not None and isinstance(literal[0], str)
    return f"`{literal[0]}`" if is_kind and literal is not None else "a section, below"


def _default(attribute: str, field: FieldInfo) -> str:
    if field.is_required() or attribute == "kind":
        return "required"
    value: Any = field.default
    if value is PydanticUndefined or value is None:
        return "`forever`" if attribute == "retention_ms" else "–"
    if attribute.endswith("_ms"):
        return f"`{format_duration(value)}`"
    if attribute == "max_bytes":
        return f"`{format_bytes(value)}`"
    if isinstance(value, Path | str | int | float):
        return f"`{value}`"
    return "`[]`"


if __name__ == "__main__":
    for heading, rows in tables().items():
        print(f"## {heading}\n\n| setting | default | takes | what it is |\n|---|---|---|---|")
        print("\n".join(rows), end="\n\n")
