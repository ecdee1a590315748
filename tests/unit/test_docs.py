"""The documentation names everything that a user can meet, as the code has it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from ingest.sinks.views import PRESETS
from marketdata import errors, keys
from marketdata.schema import LAST, MEASUREMENTS, Measurement
from tests.settings_reference import tables

ROOT = Path(__file__).parents[2]
METRIC_CLASSES = {
    "Counter",
    "Gauge",
    "Histogram",
    "Summary",
    "CounterMetricFamily",
    "GaugeMetricFamily",
    "HistogramMetricFamily",
}
SERVERS = ("ingest/monitor.py", "readers/api")


@cache
def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@cache
def everything() -> str:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(path.read_text() for path in pages)


def chapter(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    match = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"no heading {heading!r}"
    return match[1]


@pytest.mark.parametrize("heading", list(tables()))
def test_every_setting_is_documented_with_its_default(heading: str) -> None:
    found = chapter(page("settings.md"), heading)
    for row in tables()[heading]:
        assert row in found.splitlines(), "`python -m tests.settings_reference` prints the tables"


@pytest.mark.parametrize("measurement", MEASUREMENTS.values(), ids=list(MEASUREMENTS))
def test_every_measurement_and_field_is_documented(measurement: Measurement) -> None:
    found = chapter(page("schema.md"), f"`{measurement.name}`")
    for field in measurement.fields:
        assert f"`{field.name}`" in found


def test_every_field_of_the_newest_values_is_documented() -> None:
    found = chapter(page("schema.md"), "Redis")
    for field in LAST.fields:
        assert f"`{field.name}`" in found


def redis_keys() -> Iterator[str]:
    for name, value in vars(keys).items():
        if isinstance(value, str) and value.startswith("md:"):
            yield value
        elif callable(value) and getattr(value, "__module__", "") == keys.__name__:
            names = value.__code__.co_varnames[: value.__code__.co_argcount]
            key = value(*(f"{{{argument}}}" for argument in names))
            assert key.startswith("md:"), name
            yield key


@pytest.mark.parametrize("key", sorted(redis_keys()))
def test_every_redis_key_is_documented(key: str) -> None:
    assert f"| `{key}` |" in chapter(page("schema.md"), "Redis")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_view_is_documented(preset: str) -> None:
    rows = chapter(page("schema.md"), "Views").splitlines()
    for view in PRESETS[preset]:
        fields = " ".join(f"`{name}`" for name in view.fields)
        assert any(row.startswith(f"| `{preset}` | `{view.key}` | {fields} |") for row in rows)


def error_classes() -> list[type[errors.MarketDataError]]:
    found = [errors.MarketDataError]
    for error in found:
        found += error.__subclasses__()
    return [error for error in found if error.__module__ == errors.__name__]


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_error_is_documented(error: type[errors.MarketDataError]) -> None:
    assert f"`{error.__name__}`" in page("errors.md")
    if not error.__subclasses__() or "code" in vars(error):
        assert error.code == "error" or f"`{error.code}`" in page("errors.md")


def test_the_tree_of_errors_is_that_of_the_module() -> None:
    tree = re.findall(r"^    ((?:MarketDataError|[│├└ ]).*)$", errors.__doc__ or "", re.MULTILINE)
    assert len(tree) == len(error_classes())
    assert "\n".join(tree) in page("errors.md")


def commands(group: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        context = click.Context(group)
        for below in group.list_commands(context):
            command = group.get_command(context, below)
            assert command is not None
            yield from commands(command, f"{name} {below}")
    else:
        yield name, group


@pytest.mark.parametrize("program", ["ingest", "readers"])
def test_every_command_is_documented_with_its_options(program: str) -> None:
    found = dict(commands(importlib.import_module(f"{program}.cli").main, program))
    options = {
        f"{name} {max(parameter.opts, key=len)}": max(parameter.opts, key=len)
        for name, command in found.items()
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
    assert found
    assert not [name for name in found if f"`{name}" not in everything()]
    assert not [name for name, option in options.items() if option not in everything()]


def calls(path: Path) -> Iterator[tuple[str, str]]:
    """The calls of a module whose first argument is a text: function and text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        first, function = node.args[0], node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield name, first.value


def modules(*places: str) -> list[Path]:
    paths = [ROOT / place for place in places]
    return [
        module for path in paths for module in (path.rglob("*.py") if path.is_dir() else [path])
    ]


def test_every_metric_is_documented() -> None:
    found = {
        text
        for path in modules("ingest", "readers")
        for name, text in calls(path)
        if name in METRIC_CLASSES
    }
    assert "ingest_fresh" in found
    assert not {metric for metric in found if f"`{metric}" not in everything()}


def test_every_route_is_documented() -> None:
    found = {
        text.replace(":path}", "}")
        for path in modules(*SERVERS)
        for name, text in calls(path)
        if name in {"get", "post", "route", "add_route", "Route"} and text.startswith("/")
    }
    assert {"/health", "/status", "/metrics"} <= found
    assert not {
        route
        for route in found
        if not re.search(rf"[`\s]{re.escape(route)}(?![\w-])", everything())
    }


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not {
        path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in readme
    }


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_test_that_the_documentation_names_is_there() -> None:
    modules = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    functions = set(re.findall(r"def (test_\w+)", "\n".join(modules.values())))
    named = set(re.findall(r"\btest_\w+(?:\.py|…|_…)?", everything()))
    assert len(named) > 50
    assert not {name for name in named if name.endswith(".py") and name not in modules}
    for name in (name.rstrip("…") for name in named if not name.endswith(".py")):
        assert any(function.startswith(name) for function in functions), name
