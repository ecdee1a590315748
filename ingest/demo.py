"""The demo's folder: a configuration for the simulator, and a redis-server where one can be had.

Everything is on free ports of the loopback, so that a demo never meets another service.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ingest.processes import Part, command_of
from ingest.simulator.universe import universe

BINANCE_PAIRS = 130
LINEAR_PAIRS = 24
SPOT_PAIRS = 10
LOOKBACK = "3h"


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demo runs: its configuration, its parts, and what to tell about it."""

    config_path: Path
    parts: Sequence[Part]
    notes: Sequence[str]


def prepare_demo(folder: Path, now_ms: int) -> Demo:
    """Write the demo's configuration into `folder`, and say what has to run."""
    folder.mkdir(parents=True, exist_ok=True)
    simulator, monitor, api, redis = _free_ports(4)
    server = shutil.which("redis-server")
    config_path = folder / "config.yaml"
    config = _config(now_ms, simulator, monitor, api, redis if server is not None else None)
    config_path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), "utf-8")
    parts = [
        Part(
            "simulator",
            command_of("ingest", "simulate", "--port", str(simulator)),
            folder / "simulator.log",
        ),
    ]
    notes = [f"simulator at http://127.0.0.1:{simulator}/sim (faults: docs/simulator.md)"]
    if server is not None:
        command = [server, "--port", str(redis), "--bind", "127.0.0.1", "--save", ""]
        parts.append(Part("redis", [*command, "--dir", str(folder)], folder / "redis.log"))
        notes.append(f"hot values in Redis at redis://127.0.0.1:{redis}/0")
    else:
        notes.append("no redis-server found: hot values are in SQLite's table `last` only")
    return Demo(config_path, parts, notes)


def _config(
    now_ms: int, simulator: int, monitor: int, api: int, redis: int | None
) -> dict[str, object]:
    address = {
        "ws_url": f"ws://127.0.0.1:{simulator}",
        "rest_url": f"http://127.0.0.1:{simulator}",
    }
    config: dict[str, object] = {
        "store": {"kind": "sqlite", "path": "market_data.db", "ticks": {"every": "1s"}},
        "outbox": {"path": "outbox.db"},
        "api": {"port": api},
        "monitor": {"port": monitor},
        "repair": {"lookback": LOOKBACK},
        "exchanges": {
            "BINANCE_FUTURES": {
                "pairs": _pairs(now_ms, "BINANCE_FUTURES", "perpetual", BINANCE_PAIRS),
                **address,
            },
            "BYBIT": {
                "pairs": [
                    *_pairs(now_ms, "BYBIT", "perpetual", LINEAR_PAIRS),
                    *_pairs(now_ms, "BYBIT", "spot", SPOT_PAIRS),
                ],
                **address,
            },
        },
    }
    if redis is not None:
        config["redis"] = {"url": f"redis://127.0.0.1:{redis}/0", "views": ["quantum"]}
    return config


def _pairs(now_ms: int, exchange: str, kind: str, count: int) -> list[str]:
    pairs = []
    for contract in universe(now_ms):
        if (
            contract.exchange == exchange
            and contract.kind == kind
            and contract.status != "SETTLING"
        ):
            settled = "" if contract.settle is None else f":{contract.settle}"
            pairs.append(f"{contract.base}/{contract.quote}{settled}")
    return list(dict.fromkeys(pairs))[:count]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()
