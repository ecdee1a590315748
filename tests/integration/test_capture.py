"""The capture that is always on: its segments, its bounds, and a disk that fails."""

import asyncio
import gzip
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
from cryptofeed.connection import Connection
from structlog.testing import capture_logs

from ingest.capture import open_captures
from ingest.capture_files import part_of
from ingest.capture_writer import CaptureWriter
from ingest.clock import Clock
from ingest.connection import FeedConnection
from marketdata.errors import ExchangeUnavailable
from tests.service import fast_simulator
from tests.waiting import eventually, eventually_sync

START_MS = 1_795_168_800_000
UUID = "X.ws.a"


class HandClock(Clock):
    """Shows what the test says; nothing waits long on it."""

    def __init__(self):
        super().__init__()
        self.time_ms = START_MS

    def now_ms(self):
        return self.time_ms

    def timeout(self, seconds):
        return asyncio.timeout(0.001)


@asynccontextmanager
async def writing(folder, clock, **bounds):
    bounds = {"max_bytes": 2**30, "segment_ms": 60_000, **bounds}
    writer = CaptureWriter(folder, clock, **bounds)
    await writer.start()
    try:
        yield writer
    finally:
        await writer.close()


def frames(folder):
    (capture,) = open_captures(folder, ["X"])
    return [(f.received_ms - START_MS, f.text or f.told) for f in capture.frames()]


def start_ms(path):
    part = part_of(path)
    assert part is not None
    return part.start_ms


async def say(writer, clock, text, uuid=UUID):
    await writer(text, clock.now_ms() / 1000, uuid)


async def test_lines_are_cryptofeeds_and_segments_are_plain_gzip(tmp_path):
    clock = HandClock()
    async with writing(tmp_path, clock) as writer:
        await writer(None, 5.0, UUID, connect="wss://x/a")
        writer.told("opened", clock.now_ms() / 1000, UUID, "wss://x/a")
        await writer('{"op": "subscribe"}', 5.0, UUID, send="wss://x/a")
        await say(writer, clock, '{"币安": "人生"}')
        await writer("[]", 7.5, "X", endpoint="https://x/y", header={"a": "b"})
        writer.told("closed: 1006\nreset", clock.now_ms() / 1000, UUID, "wss://x/a")
    (path,) = tmp_path.glob("X.ws.a.*")
    assert path.name == "X.ws.a.20261120T100000000Z.gz"
    assert gzip.decompress(path.read_bytes()).decode().splitlines() == [
        "wss://x/a <-> 1795168800.0",
        "wss://x/a <-> 1795168800.0 opened",
        'wss://x/a <- 1795168800.0: {"op": "subscribe"}',
        '1795168800.0: {"币安": "人生"}',
        "wss://x/a <-> 1795168800.0 closed: 1006 reset",
    ]
    (rest,) = tmp_path.glob("X.2*")
    assert gzip.decompress(rest.read_bytes()) == b'https://x/y -> 7.5: [] header: {"a":"b"}\n'


async def test_every_segment_begins_with_the_names_and_the_open_connections(tmp_path):
    clock = HandClock()
    async with writing(tmp_path, clock) as writer:
        writer.metadata("X", "https://x/markets", b'{"symbols":\n[]}')
        await writer(None, 0, UUID, connect="ws://x/a")
        await writer(None, 0, "X.ws.b", connect="ws://x/b")
        writer.told("opened", clock.now_ms() / 1000, UUID, "ws://x/a")
        await say(writer, clock, "one")
        clock.time_ms += 90_000
        await say(writer, clock, "two")
        clock.time_ms += 30_000
        await eventually(lambda: len(list(tmp_path.glob("X.2*"))) == 3)
        writer.metadata("X", "https://x/markets", b'{"symbols": ["new"]}')
    segments = {}
    for path in tmp_path.iterdir():
        text = gzip.decompress(path.read_bytes()).decode()
        segments[(start_ms(path) - START_MS) // 1000, path.name.rpartition(".2")[0]] = text
    assert sorted(segments) == sorted(
        [(s, stem) for s in (0, 60, 120) for stem in ("X", UUID)] + [(0, "X.ws.b")]
    )
    names = 'https://x/markets -> 1795168800.0: {"symbols": []}\n'
    assert segments[0, "X"] == segments[60, "X"] == names
    assert segments[120, "X"].startswith(names)
    assert segments[120, "X"].endswith('1795168920.0: {"symbols": ["new"]}\n')
    assert segments[60, UUID] == (
        "ws://x/a <-> 1795168860.0 continued: 1795168800.0\n1795168890.0: two\n"
    )
    assert segments[120, UUID] == "ws://x/a <-> 1795168920.0 continued: 1795168800.0\n"


async def test_the_oldest_segments_go_when_the_folder_is_full(tmp_path):
    clock = HandClock()
    noise = [os.urandom(2_000).hex() for _ in range(30)]
    (tmp_path / "Y.ws.mine.0").write_text("1.0: a plain file is nobody's to delete\n")
    async with writing(tmp_path, clock, max_bytes=20_000) as writer:
        writer.metadata("X", "https://x/markets", b"{}")
        for text in noise:
            await say(writer, clock, text)
            await eventually(lambda: writer._lines == [] and writer._held == 0)
            clock.time_ms += 60_000
        await eventually(lambda: writer.status()["deleted"] >= 40)
        assert writer.dropped.total() == 0
    sizes = [path.stat().st_size for path in tmp_path.glob("*.gz")]
    assert 15_000 < sum(sizes) <= 20_000
    assert writer.status()["bytes"] == sum(sizes)
    kept = [text for _, text in frames(tmp_path) if "continued" not in text]
    assert kept == noise[-len(kept) :]
    assert len(kept) >= 5
    with_names = {start_ms(path) for path in tmp_path.glob("X.2*")}
    assert {start_ms(path) for path in tmp_path.glob("X.ws.a.*")} <= with_names


async def test_a_segment_that_alone_reaches_the_bound_loses_its_newest_lines(tmp_path):
    clock = HandClock()
    async with writing(tmp_path, clock, max_bytes=10_000) as writer:
        for _ in range(10):
            await say(writer, clock, os.urandom(2_000).hex())
            await eventually(lambda: writer._lines == [] and writer._held == 0)
    assert writer.dropped == {"disk_full": 10 - len(frames(tmp_path))}
    assert 3 <= len(frames(tmp_path)) <= 5


async def test_a_folder_that_cannot_be_written_costs_no_frame_and_is_told_once(tmp_path):
    clock = HandClock()
    folder = tmp_path / "capture"
    folder.write_text("a file where the folder should be")
    with capture_logs() as logs:
        async with writing(folder, clock, waiting_chars=4_000) as writer:
            for number in range(100):
                await say(writer, clock, f"{number:03}")
            await eventually(lambda: writer.error is not None)
            assert writer.dropped["memory_full"] == 81
            refused = len(logs)
            for _ in range(5):
                clock.time_ms += 60_000
                await say(writer, clock, "x" * 5_000)
            await eventually(lambda: not writer._lines and not writer._lost)
            assert len(logs) == refused
            folder.unlink()
            await eventually(lambda: writer.error is None)
            await say(writer, clock, "again")
    found = [text for _, text in frames(folder)]
    assert found[:19] == [f"{number:03}" for number in range(19)]
    assert found[-1] == "again"
    lost = [int(text.removeprefix("lost: ")) for text in found if text.startswith("lost: ")]
    assert sum(lost) == writer.dropped["memory_full"] == 86
    events = [log["event"] for log in logs]
    assert events.count("capture_unavailable") == 1
    assert events.count("capture_written_again") == 1


async def test_a_full_disk_leaves_no_half_line_and_the_rest_follows(tmp_path):
    resource = pytest.importorskip("resource")
    clock = HandClock()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    texts = [os.urandom(3_000).hex() for _ in range(4)]
    try:
        async with writing(tmp_path, clock) as writer:
            await say(writer, clock, texts[0])
            await eventually(lambda: list(tmp_path.iterdir()))
            # The kernel refuses what goes beyond, after it has written a part.
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
            for text in texts[1:]:
                await say(writer, clock, text)
            await eventually(lambda: writer.error is not None)
            assert [text for _, text in frames(tmp_path)] == texts[:1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await eventually(lambda: writer.error is None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [text for _, text in frames(tmp_path)] == texts
    assert writer.dropped.total() == 0


KILLED = """
import asyncio, sys
from pathlib import Path
from ingest.capture_writer import CaptureWriter
from ingest.clock import Clock

async def main():
    clock = Clock(speed=20)
    writer = CaptureWriter(Path(sys.argv[1]), clock, max_bytes=2**30, segment_ms=10_000)
    await writer.start()
    for number in range(10**9):
        await writer(str(number), clock.now_ms() / 1000, "X.ws.a")
        if number % 200 == 0:
            await asyncio.sleep(0.001)

asyncio.run(main())
"""


def test_what_was_written_before_a_kill_is_read_without_a_gap(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        eventually_sync(lambda: len(list(tmp_path.iterdir())) >= 3, 20)
    finally:
        process.kill()
        process.wait()
    # What a power cut leaves is even less than whole members.
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-5])
    found = [int(text) for _, text in frames(tmp_path) if not text.startswith("c")]
    assert found == list(range(len(found)))
    assert len(found) > 1_000


async def test_two_openings_of_a_lane_are_told_apart_and_the_name_is_used_again(
    tmp_path, monkeypatch
):
    async with fast_simulator() as simulator, writing(tmp_path, simulator.clock) as writer:
        monkeypatch.setattr(Connection, "raw_data_callback", writer)

        def connection(url):
            return FeedConnection(f"{url}/v5/public/linear", "X.ws.linear-1", simulator.clock)

        async with connection(simulator.ws_url).connect():
            async with connection(simulator.ws_url).connect() as beside:
                await beside.write('{"op": "ping"}')
                await beside.receive()
                beside.tell_closed("it stays silent")
            with pytest.raises(ExchangeUnavailable):
                async with connection("ws://127.0.0.1:9").connect():
                    pass
    (capture,) = open_captures(tmp_path, ["X"])
    found = [(f.connection, f.text or f.told) for f in capture.frames()]
    first, second = "X.ws.linear-1", "X.ws.linear-1~2"
    assert [what for name, what in found if name == first] == ["", "opened", "closed: by us"]
    told = [what for name, what in found if name == second]
    assert told[:2] == ["", "opened"]
    assert "pong" in told[2]
    assert told[3:5] == ["closed: it stays silent", ""]
    assert told[5].startswith("closed: X.ws.linear-1~2: no connection: ")
    assert len(told) == 6
