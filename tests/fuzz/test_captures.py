"""Captures, damaged: what can be read is read and replayed, and what is lost is counted."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import tempfile
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.capture import Capture, Frame, open_captures
from ingest.capture_files import member, segment_name
from ingest.capture_writer import CaptureWriter
from ingest.clock import Clock
from ingest.exchanges import EXCHANGES
from ingest.replaying import replay_capture
from marketdata.errors import ConfigError
from tests.feeds import MINUTE_MS, binance_kline, binance_mark, bybit_kline, bybit_row, bybit_ticker
from tests.fuzz.mutation import damaged_bytes, damaged_value, fuzzed

SAMPLES = json.loads((Path(__file__).parents[1] / "exchange_samples.json").read_text())
SECONDS = 8
START_S = MINUTE_MS // 1000 + 50


def lines_of(exchange: str) -> tuple[list[str], list[str]]:
    """What REST said, and a connection that is opened, delivers and is closed."""
    selected = {"pairs": ["BTC/USDT:USDT"], "channels": ["candles", "mark_price"]}
    if exchange == "BYBIT":
        markets: Any = {"linear": SAMPLES["B15"]["result"]["list"], "spot": []}
    else:
        markets = SAMPLES["C10"]
    said = [("markets", markets), ("intervals", {"BTCUSDT": 8.0}), ("selected", selected)]
    rest = [f"https://x/{name} -> {START_S}.0: {json.dumps(value)}" for name, value in said]
    url = "wss://x/v5/public/linear"
    told = [f"{url} <-> {START_S}.0", f"{url} <-> {START_S}.1 opened"]
    for second in range(SECONDS):
        time_ms = (START_S + second) * 1000 + 500
        for n, message in enumerate(_messages(exchange, time_ms)):
            told.append(f"{time_ms / 1000 + n / 1000}: {message.decode()}")
    told.append(f"{url} <-> {START_S + SECONDS}.9 closed: 1006")
    return rest, told


def _messages(exchange: str, time_ms: int) -> list[bytes]:
    closed = time_ms >= MINUTE_MS + 55_000
    price = str(60_000 + time_ms % 7_919)
    if exchange == "BYBIT":
        row = bybit_row(confirm=closed, close=price)
        return [bybit_kline(row, ts=time_ms), bybit_ticker("snapshot", time_ms, markPrice=price)]
    return [binance_kline(event_ms=time_ms, x=closed, c=price), binance_mark(E=time_ms, p=price)]


def make_capture(folder: Path) -> None:
    """A plain capture of one exchange, as cryptofeed's, and segments of the other, as ours."""
    rest, told = lines_of("BYBIT")
    (folder / "BYBIT.0").write_text("\n".join(rest) + "\n")
    (folder / "BYBIT.ws.linear-1.0").write_text("\n".join(told) + "\n")
    rest, told = lines_of("BINANCE_FUTURES")
    for stem, lines in (("BINANCE_FUTURES", rest), ("BINANCE_FUTURES.ws.market-1", told)):
        members = [member(f"{line}\n".encode()) for line in lines]
        (folder / segment_name(stem, START_S * 1000)).write_bytes(b"".join(members))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make_capture(folder)
    return folder


FILES = st.integers(0, 3)
BITS = st.data()


def damage(folder: Path, data: st.DataObject) -> Path:
    """Damage one file; which it was."""
    path = sorted(folder.iterdir())[data.draw(FILES)]
    before = path.read_bytes()
    if path.suffix != ".gz" and data.draw(st.booleans()):
        path.write_bytes(_damaged_line(before, data))
    else:
        path.write_bytes(data.draw(damaged_bytes(before)))
    return path


def _damaged_line(text: bytes, data: st.DataObject) -> bytes:
    """A line whose JSON, or whose time, is another."""
    lines = text.decode().split("\n")[:-1]
    at = data.draw(st.integers(0, len(lines) - 1))
    head, separator, rest = lines[at].partition(": ")
    if rest.startswith("{") and data.draw(st.booleans()):
        lines[at] = head + separator + json.dumps(data.draw(damaged_value(json.loads(rest))))
    else:
        odd = ["9" * 400, "9" * 12, "0", "-1", "1e300", "nan", "5", f"{START_S + 10**8}.5", "1.2.3"]
        lines[at] = lines[at].replace(head.split(" ")[-1], data.draw(st.sampled_from(odd)))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def read(folder: Path) -> tuple[dict[str, Capture], Counter[Frame]]:
    """Everything that can be read."""
    captures = open_captures(folder, EXCHANGES)
    frames: Counter[Frame] = Counter()
    for capture in captures:
        list(capture.answers())
        # Where a connection went may be lost with the lines that tell it.
        frames.update(frame._replace(url="") for frame in capture.frames())
        list(capture.frames((START_S + 4) * 1000))
    return {capture.exchange: capture for capture in captures}, frames


def test_the_whole_capture_has_all(whole: Path, tmp_path: Path) -> None:
    captures, frames = read(whole)
    assert frames.total() == 2 * (2 * SECONDS + 3)
    assert [capture.damaged for capture in captures.values()] == [0, 0]
    counts = asyncio.run(replay_capture(whole, tmp_path / "replay.db"))
    for exchange in EXCHANGES:
        assert counts[exchange]["messages"] == 2 * SECONDS
        assert counts[exchange]["ohlcv_1m"] >= 1
        assert counts[exchange]["mark_price"] == SECONDS


def test_what_can_be_read_is_read_and_a_loss_is_counted(whole: Path) -> None:
    _, all_frames = read(whole)

    @fuzzed(120)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "capture"
            shutil.copytree(whole, folder)
            path = damage(folder, data)
            captures, frames = read(folder)
            exchange = path.name.partition(".")[0]
            others = Counter(
                f for f in all_frames.elements() if not f.connection.startswith(exchange)
            )
            assert not others - frames, "another exchange's files are whole"
            if path.suffix != ".gz":
                return  # what a plain line says can be changed without a trace
            invented = frames - all_frames
            assert invented.keys() <= {*all_frames}, "a spoilt frame was taken for a sound one"
            if all_frames - frames or invented:
                unnoticed = _is_gzip(path.read_bytes())  # whole members are gone, or come twice
                assert captures[exchange].damaged or unnoticed

    check()


def _is_gzip(data: bytes) -> bool:
    try:
        gzip.decompress(data)
    except (OSError, EOFError, ValueError, zlib.error):
        return False
    return True


def test_a_damaged_capture_is_replayed_to_its_end(whole: Path) -> None:
    replayed = 0

    @fuzzed(25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal replayed
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "capture"
            shutil.copytree(whole, folder)
            path = damage(folder, data)
            since = data.draw(st.sampled_from([None, (START_S + 4) * 1000]))
            try:
                counts = asyncio.run(replay_capture(folder, Path(name) / "db", since_ms=since))
            except ConfigError:
                return  # no names of markets, no frames: it says so
            replayed += 1
            for exchange in {*EXCHANGES} - {path.name.partition(".")[0]}:
                assert counts[exchange]["mark_price"] >= SECONDS // 2

    check()
    assert replayed > 10


def test_a_member_that_unpacks_without_end_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most_read = 2**20
    monkeypatch.setattr("ingest.capture_files.READ_BYTES", most_read)
    bomb = member(b"1.5: " + b"x" * (30 * most_read))
    assert len(bomb) < most_read / 30
    path = tmp_path / segment_name("BYBIT.ws.linear-1", 1_000)
    path.write_bytes(member(b"1.0: before\n") + bomb + member(b"2.0: after\n"))
    (capture,) = open_captures(tmp_path, ["BYBIT"])
    tracemalloc.start()
    try:
        found = [frame.text for frame in capture.frames()]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == ["before", "after"]
    assert capture.damaged == 1
    assert most < 3 * most_read


def test_a_line_whose_time_is_spoilt_holds_back_no_other(tmp_path: Path) -> None:
    times = [10_000.0, 10_001.0, 9_010_002.0, 10_003.0, 3.0, 10_005.0]
    text = "".join(f"{time}: {n}\n" for n, time in enumerate(times))
    (tmp_path / "BYBIT.ws.linear-1.0").write_text(text)
    (capture,) = open_captures(tmp_path, ["BYBIT"])
    assert [frame.text for frame in capture.frames()] == ["0", "1", "3", "5"]
    assert capture.damaged == 2


def test_a_clock_that_was_set_costs_no_line(tmp_path: Path) -> None:
    times = [10_000.0, 10_001.0, 500.0, 501.0, 90_000.0, 90_001.0]
    text = "".join(f"{time}: {n}\n" for n, time in enumerate(times))
    (tmp_path / "BYBIT.ws.linear-1.0").write_text(text)
    (capture,) = open_captures(tmp_path, ["BYBIT"])
    assert len(list(capture.frames())) == 6
    assert capture.damaged == 0


def test_lines_that_are_cut_off_between_two_are_counted(tmp_path: Path) -> None:
    lines = b"".join(b"%d.0: %d\n" % (n, n * 7_919 % 10_007) for n in range(5_000))
    path = tmp_path / segment_name("BYBIT.ws.linear-1", 1_000)
    packed = member(lines)
    for size in (1, 9, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:size])
        (capture,) = open_captures(tmp_path, ["BYBIT"])
        assert len(list(capture.frames())) <= 5_000
        assert capture.damaged == 1


def test_where_a_connection_went_is_known_from_its_end_too(tmp_path: Path) -> None:
    path = tmp_path / segment_name("BYBIT.ws.spot-1", 1_000)
    lost = bytearray(member(b"wss://x/v5/public/spot <-> 1.0\n"))
    lost[-1] ^= 1
    rest = member(b"2.0: a\n") + member(b"wss://x/v5/public/spot <-> 3.0 closed: 1006\n")
    path.write_bytes(bytes(lost) + rest)
    (capture,) = open_captures(tmp_path, ["BYBIT"])
    assert {frame.url for frame in capture.frames()} == {"wss://x/v5/public/spot"}
    assert capture.damaged == 1


async def test_many_lines_that_waited_for_the_disk_are_members_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.capture_writer.MEMBER_BYTES", 1_000)
    monkeypatch.setattr("ingest.capture_files.READ_BYTES", 2_000)
    clock = Clock()
    writer = CaptureWriter(tmp_path, clock, max_bytes=2**30, segment_ms=60_000)
    for n in range(500):
        await writer(f"message {n}", clock.now_ms() / 1000, "BYBIT.ws.linear-1")
    await writer.start()
    await writer.close()
    (capture,) = open_captures(tmp_path, ["BYBIT"])
    texts = [frame.text for frame in capture.frames() if frame.text is not None]
    assert texts == [f"message {n}" for n in range(500)]
    assert capture.damaged == 0
