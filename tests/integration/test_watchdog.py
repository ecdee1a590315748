"""The service tells its supervisor that it goes on, by a real socket, and stops when it doesn't."""

import asyncio
import os
import socket
from contextlib import asynccontextmanager, contextmanager

import pytest

from ingest.service import Service
from ingest.watchdog import LOOKS, Notifier
from marketdata.errors import StoreUnavailable
from tests.service import SPEED, configuration, fast_simulator
from tests.waiting import eventually

WATCHDOG_S = 1.5
"""Of the world; a pipeline may rest for 30 s of the market, which are 1.5 s."""


@contextmanager
def supervisor(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        opened.setblocking(False)
        heard = []

        def messages():
            while True:
                try:
                    heard.append(opened.recv(4096).decode())
                except OSError:  # nothing more, for now or for ever
                    return heard

        yield messages


@pytest.fixture
async def simulator():
    async with fast_simulator() as simulator:
        yield simulator


@asynccontextmanager
async def told(simulator, settings, address, reload=None):
    """A service that tells; yields it, what it has told so far, and how to end it."""
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    stop = asyncio.Event()
    with supervisor(address) as messages:
        service = Service(settings, simulator.clock, reload, Notifier.from_environ(environ))
        task = asyncio.create_task(service.run(stop))
        try:
            await eventually(lambda: task.done() or messages(), 30, "a first word")
            yield service, messages
        finally:
            stop.set()
            await task
            messages()


def fed(messages):
    return sum("WATCHDOG=1" in message for message in messages())


async def fed_again(messages, times=2):
    before = fed(messages)
    await eventually(lambda: fed(messages) >= before + times, 20, "the watchdog is fed")


async def test_it_is_ready_fed_reloading_and_stopping(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port)
    address = f"@marketdata-test-{os.getpid()}"  # an abstract one
    async with told(simulator, settings, address, reload=lambda: settings) as (service, messages):
        assert messages()[0] == "READY=1"
        await fed_again(messages)
        assert any("connections live" in message for message in messages())
        service.reconcile_soon()
        await eventually(lambda: messages().count("READY=1") == 2, 10, "the end of the reload")
        reload = next(n for n, text in enumerate(messages()) if text.startswith("RELOADING=1"))
        assert "\nMONOTONIC_USEC=" in messages()[reload]
        assert "READY=1" in messages()[reload:]
    assert messages()[-1].startswith("STOPPING=1")


async def test_a_pipeline_that_is_blocked_is_not_fed_until_it_goes_on(
    simulator, tmp_path, free_port
):
    settings = configuration(simulator, tmp_path, free_port)
    async with told(simulator, settings, str(tmp_path / "notify")) as (service, messages):
        await fed_again(messages)
        async with service._pipeline._commit:
            await eventually(
                lambda: "STATUS=stuck: pipeline: no progress" in messages()[-1], 20, "it is told"
            )
            before = fed(messages)
            await eventually(
                lambda: sum("stuck" in text for text in messages()) > LOOKS, 20, "a watchdog's time"
            )
            assert fed(messages) == before
        await fed_again(messages)


async def test_with_the_disk_full_and_the_exchange_down_it_is_still_fed(
    simulator, tmp_path, free_port, monkeypatch
):
    settings = configuration(simulator, tmp_path, free_port)
    async with told(simulator, settings, str(tmp_path / "notify")) as (service, messages):
        await fed_again(messages)

        async def full(batch):
            raise StoreUnavailable("the disk is full")

        monkeypatch.setattr(service._outbox, "append", full)
        refused = service._pipeline.counts["append_retries"]
        await eventually(
            lambda: service._pipeline.counts["append_retries"] > refused + 40, 20, "40 s of it"
        )
        monkeypatch.undo()
        await simulator.stop()
        since_ms = simulator.clock.monotonic_ms()
        await eventually(
            lambda: simulator.clock.monotonic_ms() - since_ms > 75_000, 75 / SPEED * 5, "75 s of it"
        )
        assert service.status()["state"] in ("disconnected", "venue_down")
        assert not [text for text in messages() if "stuck" in text]
        await fed_again(messages)
