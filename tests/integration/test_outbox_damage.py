"""A damaged outbox: it opens, and every row is delivered as it was or counted as lost.

`OUTBOX_DAMAGE=long` damages each byte of the file and cuts it at each 512; left out, a sample.
"""

# ruff: noqa: ASYNC240
# Files are damaged here; nothing else runs meanwhile.

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import orjson
import pytest
from structlog.testing import capture_logs

from ingest.outbox import Outbox
from ingest.outbox_ledger import Lock
from ingest.outbox_records import BrokenRecord, Entry, entries
from ingest.outbox_schema import TABLES
from ingest.sinks.base import Settled
from marketdata.errors import StoreRefused, StoreUnavailable
from tests.outboxes import PLENTY, all_rows, copied, emptied, filled, marks, rows_of
from tests.stores import TIME, ohlcv, one_of_each

LONG = os.environ.get("OUTBOX_DAMAGE") == "long"
PAGE = 4_096
pytestmark = pytest.mark.timeout(3_600 if LONG else 120)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: what is tested here isn't how long an fsync takes."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
async def sound(folder: Path) -> Path:
    """The files of a filled outbox that was closed."""
    outbox = await filled(folder / "sound" / "outbox.db")
    await outbox.close()
    return folder / "sound" / "outbox.db"


@pytest.fixture
async def logged(folder: Path) -> Path:
    """Likewise, of a process that was killed: nearly everything is in the write-ahead log."""
    outbox = await filled(folder / "running" / "outbox.db")
    path = copied(folder / "running" / "outbox.db", folder / "sound")
    await outbox.close()
    return path


async def judged(path: Path) -> int:
    """Open the outbox, empty it, and hold what came against what went in: the rows lost."""
    with capture_logs() as logs:
        outbox = await Outbox.open(path, PLENTY)
        try:
            came = await emptied(outbox)
            lost = sum(
                rows for what, rows in outbox.dropped.items() if what.startswith("outbox_damaged.")
            )
            kept = outbox.depth().quarantined
        finally:
            await outbox.close()
    expected = all_rows()
    if kept == 0 and not lost:  # it was in the part of the log that is gone: waits again
        kept = 1
    strange = came - expected
    assert sum(strange.values()) <= 1, strange  # the row in quarantine, where that wasn't known
    assert all(name == "last_price" for name, _ in strange)
    assert sum(came.values()) + kept + lost == sum(expected.values()) + 1
    if lost:
        assert [log for log in logs if log["log_level"] == "error" and log["lost"]]
    return lost


def flipped(at: int, bits: int) -> Callable[[bytearray], None]:
    def damage(content: bytearray) -> None:
        content[at] ^= bits

    return damage


async def judged_with(path: Path, damage: Callable[[bytearray], None], part: str = "") -> int:
    """A copy of the outbox, with one of its files damaged."""
    copy = copied(path, path.parent.parent / "copy")
    file = Path(f"{copy}{part}")
    content = bytearray(file.read_bytes())
    damage(content)
    file.write_bytes(content)
    return await judged(copy)


def offsets(size: int, sample: int) -> Iterator[int]:
    dice = random.Random(5)
    return iter(range(size)) if LONG else (dice.randrange(size) for _ in range(sample))


def bits(at: int) -> int:
    return (0x01, 0x80, 0xFF, 0x10)[at % 4]


def test_no_flipped_bit_of_a_record_goes_unnoticed() -> None:
    (entry,) = entries("ohlcv_3m", [ohlcv()], TIME)
    for at in range(len(entry.payload) * 8):
        payload = bytearray(entry.payload)
        payload[at // 8] ^= 1 << at % 8
        with pytest.raises(BrokenRecord):
            entry._replace(payload=bytes(payload)).decode()
    for column in set(Entry._fields) - {"id", "measurement", "payload"}:
        for bit in range(40):
            with pytest.raises(BrokenRecord):
                entry._replace(**{column: getattr(entry, column) ^ 1 << bit}).decode()


async def test_each_byte_of_a_record_in_the_file(sound: Path) -> None:
    payload = orjson.dumps([tuple(row) for row in one_of_each()["last_price"]])
    start = sound.read_bytes().index(payload)
    places = range(start - 40, start + len(payload))
    lost = [await judged_with(sound, flipped(at, 0xFF)) for at in places]
    assert lost[40:] == [1] * len(payload)


async def test_bytes_all_over_the_file(sound: Path) -> None:
    for at in offsets(sound.stat().st_size, 90):
        await judged_with(sound, flipped(at, bits(at)))


async def test_each_page_full_of_noise(sound: Path) -> None:
    everything = sum(all_rows().values())
    lost = []
    for page in range(sound.stat().st_size // PAGE):
        noise = random.Random(page).randbytes(PAGE)

        def damage(content: bytearray, at: int = page * PAGE, noise: bytes = noise) -> None:
            content[at : at + PAGE] = noise

        lost.append(await judged_with(sound, damage))
    assert lost[0] == 0, "the first page is known by heart"
    assert max(lost[2:]) < everything, "a page costs the records on it"
    assert sum(1 for rows in lost if rows == everything + 1) <= 1, "only the root of all others"


async def test_a_file_that_was_cut_short(sound: Path) -> None:
    size = sound.stat().st_size
    for length in range(0, size, 512 if LONG else 4_608):

        def cut(content: bytearray, length: int = length) -> None:
            del content[length:]

        await judged_with(sound, cut)


async def test_a_log_that_was_cut_short_or_damaged(logged: Path) -> None:
    size = Path(f"{logged}-wal").stat().st_size
    for at in [*range(0, size, 512 if LONG else 9_999), size - 1]:

        def cut(content: bytearray, at: int = at) -> None:
            del content[at:]

        lost_by_cut = await judged_with(logged, cut, "-wal")
        assert lost_by_cut >= await judged_with(logged, flipped(at, bits(at)), "-wal") or at < 32


def without(part: str) -> Callable[[Path], None]:
    return lambda path: Path(f"{path}{part}").unlink()


def holding(content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "all_lost"),
    [
        (without("-wal"), True),
        (holding(b""), False),
        (without(""), False),
        (holding(b"something else entirely" * 100), False),
        (lambda path: os.truncate(path, 100), False),
        (without(".lock"), False),
    ],
    ids=["no log", "an empty file", "no file", "garbage", "cut off", "no lock file"],
)
async def test_a_part_that_is_missing(
    logged: Path, damage: Callable[[Path], None], all_lost: bool
) -> None:
    damage(logged)
    lost = await judged(logged)
    assert bool(lost) == all_lost


@pytest.mark.parametrize("gone", [("",), ("", ".lock")], ids=["file", "file and lock"])
async def test_a_file_that_is_gone_is_counted_where_that_is_known(
    sound: Path, gone: tuple[str, ...]
) -> None:
    for part in gone:
        Path(f"{sound}{part}").unlink()
    outbox = await Outbox.open(sound, PLENTY)
    try:
        lost = sum(outbox.dropped.values())
        assert lost == (0 if ".lock" in gone else sum(all_rows().values()) + 1)
        await outbox.append({"ohlcv_3m": [ohlcv()]})
    finally:
        await outbox.close()


async def test_what_is_lost_is_counted_by_measurement_and_the_damaged_file_kept(
    sound: Path,
) -> None:
    content = bytearray(sound.read_bytes())
    at = content.index(b'[["BINANCE_FUTURES","BTC/USDT:USDT","candles"')
    content[at : at + 200] = random.Random(1).randbytes(200)
    sound.write_bytes(content)
    with capture_logs() as logs:
        outbox = await Outbox.open(sound, PLENTY)
        await emptied(outbox)
        dropped = dict(outbox.dropped)
        await outbox.close()
    assert dropped["outbox_damaged.gap"] == 1
    told = [log for log in logs if log["log_level"] == "error"]
    assert sum(sum(log["lost"].values()) for log in told) == sum(dropped.values())
    for log in told:
        assert log["event"] == "outbox_record_broken" or Path(log["moved_to"]).exists()


async def test_a_version_1_file_that_is_damaged_is_salvaged(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in TABLES[1]:
            connection.execute(statement)
        for n in range(200):
            (entry,) = entries("mark_price", marks(20, TIME + n * 100), TIME)
            connection.execute(
                "INSERT INTO entries VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", entry[1:-1]
            )
        connection.execute("PRAGMA user_version = 1")
    with path.open("r+b") as file:
        file.seek(40 * PAGE)
        file.write(random.Random(3).randbytes(PAGE))
    outbox = await Outbox.open(path, PLENTY)
    try:
        came = await emptied(outbox)
        assert outbox.dropped["outbox_damaged.unknown"] == 1
        assert 3_000 < sum(came.values()) < 4_000
    finally:
        await outbox.close()


async def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "market_data.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE ohlcv_3m (time INTEGER)")
        connection.execute("PRAGMA user_version = 1")
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="a database of something else"):
        await Outbox.open(path, PLENTY)
    assert path.read_bytes() == before


# While it runs.


def changed(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


async def test_a_broken_record_costs_only_itself_and_its_bytes_are_kept(tmp_path: Path) -> None:
    outbox = await filled(tmp_path / "outbox.db")
    try:
        changed(tmp_path / "outbox.db", "UPDATE entries SET payload = x'00' WHERE id = 5")
        with capture_logs() as logs:
            came = await emptied(outbox)
        lost = sum(outbox.dropped.values())
        assert lost > 0
        assert sum(came.values()) + lost == sum(all_rows().values())
        assert outbox.depth().rows == 0
        assert [log["event"] for log in logs] == ["outbox_record_broken"]
        with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection:
            kept = connection.execute("SELECT source, record, bytes FROM broken").fetchall()
        assert kept == [("entries", 5, b"\x00")]
    finally:
        await outbox.close()


async def test_pending_never_gives_a_broken_row(tmp_path: Path) -> None:
    outbox = await Outbox.open(tmp_path / "outbox.db", PLENTY)
    try:
        await outbox.append({"ohlcv_1m": [ohlcv()]})
        await outbox.append({"ohlcv_1m": [ohlcv(time=TIME + 60_000)]})
        changed(
            tmp_path / "outbox.db",
            "UPDATE entries SET payload = CAST(replace(payload, '2.25', '9.25') AS BLOB)"
            " WHERE id = 1",
        )
        found = await outbox.pending("ohlcv_1m", ohlcv().exchange, ohlcv().symbol, 0, 2**50)
        assert found == [ohlcv(time=TIME + 60_000)]
        assert outbox.dropped == {"outbox_damaged.ohlcv_1m": 1}
    finally:
        await outbox.close()


def noise_under(path: Path, pages: range) -> None:
    """Damage pages of an open file, and make its process read them again."""
    changed(path, "CREATE TABLE IF NOT EXISTS another (id)")
    changed(path, "DROP TABLE another")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # Not by closing: SQLite would forget this process's locks.
        with path.open("r+b") as file:
            for page in pages:
                file.seek(page * PAGE)
                file.write(random.Random(page).randbytes(PAGE))


@pytest.mark.leaks  # SQLite keeps what another connection's close would unlock
@pytest.mark.parametrize("pages", [range(1), range(1, 3), range(8, 12), range(0, 16)], ids=str)
async def test_damage_that_is_met_while_running_is_mended_at_once(
    tmp_path: Path, pages: range
) -> None:
    path = tmp_path / "outbox.db"
    outbox = await filled(path)
    try:
        parcel = await outbox.take(100)
        assert parcel is not None
        noise_under(path, pages)
        late = {"gap": one_of_each()["gap"]}
        await outbox.append(late)  # kept, whatever the repair finds
        await outbox.settle(parcel, Settled(parcel.rows))
        came = rows_of(parcel.batch) + await emptied(outbox)
        lost = sum(outbox.dropped.values())
        expected = all_rows() + rows_of(late)
        assert not came - expected
        total = sum(came.values()) + outbox.depth().quarantined + lost
        # What was with the sink may be counted as lost as well: it was, from the file.
        assert sum(expected.values()) + 1 <= total <= sum(expected.values()) + 1 + parcel.rows
        assert outbox.depth().rows == 0
    finally:
        await outbox.close()


async def test_a_file_that_is_deleted_under_the_service_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = await filled(path)
    try:
        path.unlink()
        await outbox.append({"ohlcv_3m": [ohlcv(symbol="ETH/USDT:USDT")]})
        assert outbox.dropped == {}
        assert path.exists()
        await outbox.close()
        outbox = await Outbox.open(path, PLENTY)
        assert outbox.depth().quarantined == 1
        assert sum((await emptied(outbox)).values()) == sum(all_rows().values()) + 1
    finally:
        await outbox.close()


async def test_a_folder_that_was_away_for_a_while_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    outbox = await filled(folder / "outbox.db")
    try:
        folder.rename(tmp_path / "elsewhere")
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await outbox.append({"ohlcv_3m": [ohlcv(symbol="ETH/USDT:USDT")]})
        (tmp_path / "elsewhere").rename(folder)
        await outbox.append({"ohlcv_3m": [ohlcv(symbol="ETH/USDT:USDT")]})
        assert sum((await emptied(outbox)).values()) == sum(all_rows().values()) + 1
        assert not outbox.dropped
        assert not list(folder.glob("*.damaged-*"))
    finally:
        await outbox.close()


KILLED = """
import os, sys
from pathlib import Path
from ingest.outbox_file import OutboxFile

def killed_at(call):
    def run(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*args, **kwargs)
    return run

for name in ("rename", "replace", "fsync"):
    setattr(os, name, killed_at(getattr(os, name)))
for left, path in enumerate(sys.argv[1:]):
    child = os.fork()
    if child == 0:
        OutboxFile(Path(path), 2**30, lambda: 1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
"""


async def test_killed_at_any_step_of_a_repair_the_next_start_ends_it(logged: Path) -> None:
    logged.unlink()
    copies = [copied(logged, logged.parent.parent / f"copy{n}") for n in range(12)]
    killing = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-c", KILLED, *copies], cwd=Path.cwd(), capture_output=True, check=True
    )
    ended = [int(code) for code in killing.stderr.split()]
    steps = ended.index(0)
    assert ended == [9] * steps + [0] * (len(copies) - steps)
    assert steps >= 6
    for copy in copies:
        assert await judged(copy) == 0


# The power is cut.

APPENDING = """
import os, sys
from pathlib import Path
from ingest.outbox_file import OutboxFile
from tests.stores import mark

file = OutboxFile(Path(sys.argv[1]), 2**30, lambda: 1)
for n in range(120):
    file.append({"mark_price": [mark(time=n * 100 + i) for i in range(100)]}, 1)
    print(n + 1, os.stat(sys.argv[1] + "-wal").st_size, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("seed", range(40 if LONG else 3))
async def test_a_power_cut_costs_nothing_that_append_returned_for(folder: Path, seed: int) -> None:
    """What was written after the last fsync is lost, or half of it is, or it is zeros."""
    dice = random.Random(seed)
    path = folder / "var" / "outbox.db"
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", APPENDING, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path.cwd(),
    )
    with process:
        assert process.stdout is not None
        last = dice.randrange(20, 100)
        while int(process.stdout.readline().split()[0]) < last:
            pass
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # noqa: ASYNC222
        stopped = copied(path, folder / "stopped")
        process.kill()
        printed = [line.split() for line in process.stdout.read().splitlines()]
    appends, synced = [int(word) for word in printed[-1]] if printed else (last, None)
    wal = Path(f"{stopped}-wal").stat().st_size
    with Lock(stopped) as lock:
        assert lock.ledger is not None
        if synced is None or lock.ledger.total().appended > appends * 100:
            # It was on disk, and not printed yet.
            appends, synced = lock.ledger.total().appended // 100, wal
    for _ in range(10):
        after = copied(stopped, folder / "after")
        cut = dice.randint(synced, wal)
        os.truncate(f"{after}-wal", cut)
        os.truncate(f"{after}-wal", dice.choice((cut, wal)))
        outbox = await Outbox.open(after, PLENTY)
        try:
            assert not outbox.dropped
            times = sorted(row.time for _, row in await emptied(outbox))
        finally:
            await outbox.close()
        assert times == list(range(len(times)))
        assert appends * 100 <= len(times) <= appends * 100 + 100


# The disk is full.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system can't be mounted here: it needs root")
    yield folder
    subprocess.run(["/bin/umount", folder], check=True)


def fill_up(folder: Path) -> Path:
    """A file that takes all the room that there is."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(PAGE))
    return ballast


async def test_a_full_disk_takes_nothing_and_loses_nothing(small_disk: Path) -> None:
    outbox = await Outbox.open(small_disk / "outbox.db", PLENTY)
    try:
        await outbox.append({"mark_price": marks(500)})
        ballast = fill_up(small_disk)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="full"):
                await outbox.append({"mark_price": marks(5_000, TIME + 500)})
        assert outbox.depth().rows == 500
        ballast.unlink()
        await outbox.append({"mark_price": marks(10, TIME + 500)})
        came = await emptied(outbox)
        assert sorted(row.time - TIME for _, row in came) == list(range(510))
        assert not outbox.dropped
    finally:
        await outbox.close()


async def test_a_repair_waits_until_there_is_room(small_disk: Path, sound: Path) -> None:
    copy = copied(sound, small_disk / "var")
    with copy.open("r+b") as file:
        file.seek(3 * PAGE)
        file.write(random.Random(1).randbytes(PAGE))
    ballast = fill_up(small_disk)
    before = copy.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await Outbox.open(copy, PLENTY)
        assert copy.read_bytes() == before
    ballast.unlink()
    assert await judged(copy) < sum(all_rows().values())
