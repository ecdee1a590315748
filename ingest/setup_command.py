"""`ingest setup`: create what the store needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from ingest.options import config_option
from ingest.setup import TOKENS, Folder, Keeper, Printer, Step, look_for_redis, set_up_sqlite
from marketdata.config import load_config
from marketdata.errors import ConfigError
from marketdata.settings import InfluxStore, Settings

ADMIN_VARIABLE = "INFLUXDB_ADMIN_TOKEN"
NOT_ALL_THERE = 1
_NOT_YET = "not-there-yet"


@click.command()
@config_option
@click.option(
    "--admin-token-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help=f"The operator's token of InfluxDB. Left out: {ADMIN_VARIABLE}, then admin.token in the"
    " folder of --tokens, then store.token.",
)
@click.option(
    "--tokens",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep new tokens in files of this folder that only you can read. Left out: printed, once.",
)
@click.option(
    "--new-token",
    "new_tokens",
    type=click.Choice(TOKENS),
    multiple=True,
    help="Make this token anew; the old one is void then. May be given twice.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def setup(
    config_path: Path | None,
    admin_token_file: Path | None,
    tokens: Path | None,
    new_tokens: Sequence[str],
    dry_run: bool,
) -> None:
    """Create what the store needs; what is there stays. Exit 1 if something stays missing."""
    settings, fallback = _settings(config_path)
    keeper = Printer(click.echo) if tokens is None else Folder(tokens)
    missing = False
    try:
        admin = _admin(admin_token_file, keeper)
        for step in _steps(settings, admin, fallback, keeper, new_tokens, dry_run):
            click.echo(step.text(dry_run=dry_run))
            missing = missing or step.outcome == "missing"
    except OSError as error:
        raise click.UsageError(f"{error.filename or tokens}: {error.strerror or error}") from None
    sys.exit(NOT_ALL_THERE if missing else 0)


def _steps(
    settings: Settings,
    admin: str | None,
    fallback: str | None,
    keeper: Keeper,
    new_tokens: Sequence[str],
    dry_run: bool,
) -> Iterator[Step]:
    store = settings.store
    if isinstance(store, InfluxStore):
        from ingest.setup_influx import InfluxSetup

        with InfluxSetup(
            store,
            admin=admin,
            fallback=fallback,
            keeper=keeper,
            new_tokens=new_tokens,
            dry_run=dry_run,
        ) as influx:
            yield from influx.run()
    else:
        yield set_up_sqlite(store, dry_run=dry_run)
    if settings.redis is not None:
        yield look_for_redis(settings.redis)


def _admin(token_file: Path | None, keeper: Keeper) -> str | None:
    """The operator's token, as far as somebody has named one."""
    if token_file is None:
        return os.environ.get(ADMIN_VARIABLE) or keeper.kept("admin")
    token = token_file.read_text(encoding="utf-8", errors="replace").strip()
    if not token:
        raise click.BadParameter(f"{token_file} is empty; valid: a file with one token")
    return token


def _settings(path: Path | None) -> tuple[Settings, str | None]:
    """The settings and `store.token`; None for a token that this command may be about to make."""
    try:
        settings = load_config(path)
    except ConfigError as error:
        if not all(fault.key.startswith("store.token") for fault in error.faults):
            raise
        return load_config(Path(error.source), _Lenient(), read=_read), None
    store = settings.store
    return settings, store.token.get_secret_value() if isinstance(store, InfluxStore) else None


class _Lenient(Mapping[str, str]):
    """The environment, in which no variable is missing."""

    def __getitem__(self, name: str) -> str:
        return os.environ.get(name) or _NOT_YET

    def __iter__(self) -> Iterator[str]:
        return iter(os.environ)

    def __len__(self) -> int:
        return len(os.environ)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return _NOT_YET
