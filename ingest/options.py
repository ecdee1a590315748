"""The options that commands share; in a module of their own, so that each command can have one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ingest.logs import LEVELS


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--config`: left out, MARKETDATA_CONFIG, then config.yaml."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        help="The configuration. Left out: MARKETDATA_CONFIG, then config.yaml.",
    )(command)


def log_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--log-level`."""
    return click.option(
        "--log-level", type=click.Choice(LEVELS), default="info", show_default=True
    )(command)
