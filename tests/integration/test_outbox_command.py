"""`ingest outbox show` and `ingest outbox retry`, beside a running outbox and without one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ingest.cli import main
from ingest.outbox import Outbox
from ingest.sinks.base import Rejected, Settled
from marketdata.schema import Batch, LastPrice
from tests.outboxes import PLENTY, emptied, filled, rows_of
from tests.stores import EXCHANGE, SYMBOL, TIME, mark, ohlcv

REFUSED = LastPrice(EXCHANGE, SYMBOL, TIME - 1, 0.25)
"""What is in the quarantine of a filled outbox."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    exchanges = {"BINANCE_FUTURES": {"pairs": ["BTC/USDT:USDT"]}}
    path.write_text(json.dumps({"outbox": {"path": "outbox.db"}, "exchanges": exchanges}))
    return path


def ingest(config: Path, *words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["outbox", *words, "--config", str(config)])
    assert done.exit_code == code, done.output
    return done


def shown(config: Path, *words: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(ingest(config, "show", "--json", *words).stdout)
    return state


async def refuse(outbox: Outbox, batch: Batch, reason: str) -> None:
    """Append rows that the store refuses for this reason."""
    await outbox.append(batch)
    parcel = await outbox.take(5_000)
    assert parcel is not None
    assert parcel.batch == batch
    rejected = [Rejected(name, row, reason) for name, rows in batch.items() for row in rows]
    await outbox.settle(parcel, Settled(0, tuple(rejected)))


async def test_show_tells_what_waits_and_what_was_refused_while_it_is_open(config: Path) -> None:
    outbox = await filled(config.parent / "outbox.db")
    try:
        state = await asyncio.to_thread(shown, config)
        assert {name: of["rows"] for name, of in state["waiting"].items()} == {
            "funding_rate": 1, "funding_settled": 1, "gap": 1, "last_price": 1, "mark_3m": 1,
            "mark_price": 960, "ohlcv_1m": 1, "ohlcv_3m": 80,
        }  # fmt: skip
        assert sum(of["bytes"] for of in state["waiting"].values()) == outbox.depth().bytes
        (refused,) = state["quarantine"]["newest"]
        assert refused["row"] == REFUSED._asdict()
        assert (refused["reason"], refused["retry"]) == ("422: too old [1]", False)
        text = (await asyncio.to_thread(ingest, config, "show")).stdout
        assert "old [1]" in text
        assert "in quarantine: last_price 1" in text
    finally:
        await outbox.close()


async def test_show_has_the_newest_first_and_no_more_than_asked_for(config: Path) -> None:
    outbox = await Outbox.open(config.parent / "outbox.db", PLENTY)
    for n in range(5):
        await refuse(outbox, {"ohlcv_3m": [ohlcv(revision=n)]}, f"reason {n}")
    await outbox.close()
    state = shown(config, "--limit", "2")
    assert [of["reason"] for of in state["quarantine"]["newest"]] == ["reason 4", "reason 3"]
    assert state["quarantine"]["rows"] == {"ohlcv_3m": 5}


def test_without_an_outbox_it_says_so(config: Path) -> None:
    assert "isn't there" in ingest(config, "show", code=3).stderr
    assert "isn't there" in ingest(config, "retry", "--all", code=3).stderr


async def test_a_retried_row_is_sent_again_by_the_running_service(config: Path) -> None:
    outbox = await filled(config.parent / "outbox.db")
    try:
        done = await asyncio.to_thread(ingest, config, "retry", "--all")
        assert "1 rows will be sent again" in done.stdout
        assert shown(config)["quarantine"]["newest"][0]["retry"]
        rows = await emptied(outbox)
        assert rows["last_price", REFUSED] == 1
        assert outbox.depth().quarantined == outbox.depth().rows == 0
    finally:
        await outbox.close()


async def test_without_a_service_the_next_start_sends_them(config: Path) -> None:
    outbox = await filled(config.parent / "outbox.db")
    await emptied(outbox)
    await outbox.close()
    await asyncio.to_thread(ingest, config, "retry", "--measurement", "last_price")
    outbox = await Outbox.open(config.parent / "outbox.db", PLENTY)
    try:
        await asyncio.wait_for(outbox.wait(), 5)
        assert await emptied(outbox) == rows_of({"last_price": [REFUSED]})
    finally:
        await outbox.close()


async def test_only_the_rows_that_are_meant_are_sent_again(config: Path) -> None:
    outbox = await Outbox.open(config.parent / "outbox.db", PLENTY)
    try:
        await refuse(outbox, {"ohlcv_3m": [ohlcv()]}, "422: older than the retention")
        await refuse(outbox, {"ohlcv_3m": [ohlcv(time=TIME + 1)]}, "400: field type conflict")
        await refuse(outbox, {"mark_price": [mark()]}, "400: field type conflict")
        meant = ("--measurement", "ohlcv_3m", "--reason", "conflict")
        await asyncio.to_thread(ingest, config, "retry", *meant)
        nothing = await asyncio.to_thread(ingest, config, "retry", "--reason", "gone", code=1)
        assert "no such row" in nothing.stdout
        await outbox.append({"ohlcv_3m": [ohlcv(time=TIME + 2)]})
        assert [row.time for _, row in await emptied(outbox)] == [TIME + 2, TIME + 1]
        assert outbox.depth().quarantined == 2
    finally:
        await outbox.close()


async def test_a_row_that_is_refused_again_comes_back_with_the_new_words(config: Path) -> None:
    outbox = await filled(config.parent / "outbox.db")
    try:
        await emptied(outbox)
        await asyncio.to_thread(ingest, config, "retry", "--all")
        await outbox.append({"mark_price": [mark()]})
        await emptied_but_refusing(outbox, "400: still no")
        (refused,) = (await asyncio.to_thread(shown, config))["quarantine"]["newest"]
        assert (refused["reason"], refused["retry"]) == ("400: still no", False)
        assert refused["row"] == REFUSED._asdict()
    finally:
        await outbox.close()


async def emptied_but_refusing(outbox: Outbox, reason: str) -> None:
    """Accept all but last prices."""
    while parcel := await outbox.take(5_000):
        rejected = [
            Rejected("last_price", row, reason) for row in parcel.batch.get("last_price", [])
        ]
        await outbox.settle(parcel, Settled(parcel.rows - len(rejected), tuple(rejected)))


async def test_a_row_of_which_a_later_state_waits_is_not_sent_over_it(config: Path) -> None:
    outbox = await Outbox.open(config.parent / "outbox.db", PLENTY)
    await refuse(outbox, {"ohlcv_3m": [ohlcv(revision=1)]}, "no")
    await refuse(outbox, {"ohlcv_3m": [ohlcv(revision=2, time=TIME + 180_000)]}, "no")
    await outbox.append({"ohlcv_3m": [ohlcv(revision=3)]})
    await outbox.close()
    await asyncio.to_thread(ingest, config, "retry", "--all")
    outbox = await Outbox.open(config.parent / "outbox.db", PLENTY)
    try:
        rows = await emptied(outbox)
        assert [row.revision for _, row in rows] == [3, 2]  # type: ignore[union-attr]
        assert outbox.depth().quarantined == 0
    finally:
        await outbox.close()


@pytest.mark.parametrize("words", [(), ("--all", "--reason", "x")])
def test_retry_wants_to_know_what(config: Path, words: tuple[str, ...]) -> None:
    assert "--measurement" in ingest(config, "retry", *words, code=2).stderr
