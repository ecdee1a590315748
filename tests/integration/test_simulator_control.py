"""The simulator's control route: faults, counters, the truth; and its command."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
import yaml
from aiohttp import ClientSession

from ingest.clock import Clock
from ingest.simulator.faults import Lasting
from ingest.simulator.scenarios import SCENARIOS
from ingest.simulator.server import Simulator
from ingest.simulator.universe import BINANCE, BYBIT, Kind
from tests.simulation import START_MS, Json, get
from tests.waiting import eventually


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """An hour in a minute."""
    async with Simulator(clock=Clock(speed=60, start_ms=START_MS)) as simulator:
        yield simulator


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


# Faults and counters


async def test_faults_come_and_go_by_the_control_route(
    simulator: Simulator, session: ClientSession
) -> None:
    url = f"{simulator.url}/sim/faults"
    fault = {"kind": "silence", "id": "币安人生USDT", "seconds": 500}
    async with session.post(url, json=fault) as response:
        assert response.status == 201
        number = (await response.json())["number"]
    listed = (await get(session, simulator, "/sim/faults"))["faults"]
    assert listed == {str(number): {**fault, "control": False}}
    async with session.delete(f"{url}/{number}") as response:
        assert response.status == 204
    async with session.delete(f"{url}/{number}") as response:
        assert response.status == 404
    await session.post(url, json={"kind": "rest_down", "exchange": "BYBIT"})
    async with session.delete(url) as response:
        assert response.status == 204
    assert (await get(session, simulator, "/sim/faults")) == {"faults": {}}


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "silence", "pair": "BTC/USDT:USDT"},
        {"kind": "silence", "id": "NOPE"},
        {"kind": "silence", "id": "SHIB1000USDT", "exchange": "BINANCE_FUTURES"},
        {"kind": "revise_minute", "exchange": "BYBIT", "id": "NOPE"},
        {"kind": "revise_minute", "exchange": "BYBIT", "id": "BTCUSDT", "minute_ms": 61_000},
    ],
)
async def test_a_bad_fault_is_refused_and_nothing_happens(
    simulator: Simulator, session: ClientSession, fault: Json
) -> None:
    async with session.post(f"{simulator.url}/sim/faults", json=fault) as response:
        assert response.status == 422
        assert (await response.json())["error"] == "bad_fault"
    assert simulator.faults.listed(simulator.clock.now_ms()) == {}


async def test_stats_tell_who_is_there(simulator: Simulator, session: ClientSession) -> None:
    await get(session, simulator, "/fapi/v1/klines?symbol=BTCUSDT&interval=1m")
    url = f"{simulator.ws_url}/market/ws/btcusdt@markPrice@1s"
    async with session.ws_connect(url) as socket:
        await socket.receive(timeout=5)
        stats = await get(session, simulator, "/sim/stats")
    assert stats[BINANCE]["connections"] == stats[BINANCE]["handshakes"] == 1
    assert stats[BINANCE]["rest_requests"] == 1
    assert stats[BINANCE]["most_weight"] == 5
    assert stats[BINANCE]["messages_sent"] > 0
    assert stats[BYBIT]["connections"] == 0


# The truth


@pytest.mark.parametrize("kind", ["perpetual", "spot"])
async def test_the_truth_is_the_market_s(
    simulator: Simulator, session: ClientSession, kind: Kind
) -> None:
    end_ms = START_MS - START_MS % 180_000
    query = f"start={end_ms - 900_000}&end={end_ms}&kind={kind}"
    path = f"/sim/truth/BYBIT/BTCUSDT/klines?interval=3m&{query}"
    rows = (await get(session, simulator, path))["rows"]
    contract = simulator.market.contract(BYBIT, "BTCUSDT", kind)
    bars = simulator.market.klines(contract, 180_000, end_ms - 900_000, end_ms, end_ms)
    assert [(row[0], row[5], row[7]) for row in rows] == [
        (bar.open_ms, contract.quantity(bar.volume), bar.trades) for bar in bars
    ]
    assert len(rows) == 5


async def test_the_truth_of_marks_and_funding_can_be_asked(
    simulator: Simulator, session: ClientSession
) -> None:
    marks = await get(
        session,
        simulator,
        f"/sim/truth/{BINANCE}/BTCUSDT/marks?start={START_MS}&end={START_MS + 3000}",
    )
    contract = simulator.market.contract(BINANCE, "BTCUSDT")
    assert [row[0] for row in marks["rows"]] == [START_MS, START_MS + 1000, START_MS + 2000]
    mark = simulator.market.mark(contract, START_MS)
    assert Decimal(marks["rows"][0][1]) == Decimal(mark.price).scaleb(-8)
    path = f"/sim/truth/{BINANCE}/BTCUSDT/funding?start={START_MS - 86_400_000}"
    funding = await get(session, simulator, path)
    assert funding["interval_hours"] == 8
    assert len(funding["settled"]) == 3


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("BYBIT/NOPE/klines", 404),
        ("BYBIT/BTCUSDT/klines?interval=7m", 422),
        ("BYBIT/BTCUSDT/klines?start=yesterday", 422),
        ("BYBIT/BTCUSDT/klines?kind=swap", 422),
        ("BYBIT/BTCUSDT/marks?start=0", 422),
    ],
)
async def test_a_wrong_question_about_the_truth_is_told(
    simulator: Simulator, session: ClientSession, path: str, status: int
) -> None:
    async with session.get(f"{simulator.url}/sim/truth/{path}") as response:
        assert response.status == status


# Scenarios and the command


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_every_scenario_can_be_played(session: ClientSession, scenario: str) -> None:
    clock = Clock(speed=1_000, start_ms=START_MS)
    async with Simulator(clock=clock, scenario=scenario) as simulator:
        await eventually(lambda: clock.now_ms() > START_MS + 400_000)
        steps = [step for step in SCENARIOS[scenario] if step.at_s < 300]
        lasting = sum(isinstance(step.fault, Lasting) for step in steps)
        assert simulator.faults.last_number >= lasting


async def test_the_command_prints_a_configuration_and_ends_well_on_sigterm(
    session: ClientSession,
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest.simulator", "--port", "0",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    printed = ""
    async with asyncio.timeout(20):
        while "Ctrl-C" not in printed:
            line = await process.stdout.readline()
            assert line, "the simulator ended by itself"
            printed += line.decode()
        exchanges = yaml.safe_load(printed)["exchanges"]
        assert exchanges.keys() == {BINANCE, BYBIT}
        async with session.get(f"{exchanges[BINANCE]['rest_url']}/fapi/v1/time") as response:
            assert response.status == 200
        async with session.ws_connect(f"{exchanges[BYBIT]['ws_url']}/v5/public/spot"):
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0


async def test_a_port_that_is_taken_is_told(simulator: Simulator) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest.simulator", "--port", str(simulator.port),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 3
    assert b"take another --port" in stderr
