"""The outbox's ledger: how many rows came in and how many wait, so that a loss can be counted.

It is written in the transaction of every change, and copied into the lock file once that is on
disk. The copy is never ahead of what was fsynced: if it knows of rows that the file doesn't, the
file has lost them.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from marketdata.errors import StoreRefused, StoreUnavailable

_COPY_AT = 64
_PAGE_AT = 8_192
PAGE_BYTES = 4_096
"""SQLite's pages; a file with others isn't ours."""


class Account(NamedTuple):
    """One measurement: rows that ever came in; rows and bytes that wait; rows in quarantine."""

    appended: int = 0
    rows: int = 0
    bytes: int = 0
    quarantined: int = 0


class Damage(NamedTuple):
    """What a repair found: why it was needed, rows lost by measurement, where the old file lies."""

    cause: str
    lost: dict[str, int]
    moved_to: str | None


def new_file() -> str:
    """A name for an outbox's file, wherever it is moved."""
    return os.urandom(8).hex()


@dataclass(slots=True)
class Ledger:
    """Accounts by measurement.

    `file` tells one outbox from another; `last` is the last id that a record got, in both tables:
    none is used again. `damage` has not been told yet.
    """

    file: str = field(default_factory=new_file)
    last: int = 0
    accounts: dict[str, Account] = field(default_factory=dict)
    damage: Damage | None = None

    def add(
        self, measurement: str, *, appended: int = 0, rows: int = 0, size: int = 0, refused: int = 0
    ) -> None:
        """Change one measurement's account by so many."""
        old = self.accounts.get(measurement, Account())
        self.accounts[measurement] = Account(
            old.appended + appended, old.rows + rows, old.bytes + size, old.quarantined + refused
        )

    def total(self) -> Account:
        """All accounts as one."""
        return Account(*map(sum, zip(*self.accounts.values(), strict=True)))

    def behind(self, later: Ledger) -> dict[str, int]:
        """By measurement, how many rows have come in by `later` that this one doesn't know.

        >>> Ledger("f", 1, {"gap": Account(5)}).behind(Ledger("f", 2, {"gap": Account(7)}))
        {'gap': 2}
        >>> Ledger("f").behind(Ledger("another", 2, {"gap": Account(7)}))
        {}
        """
        if self.file != later.file:
            return {}
        come = {
            name: account.appended - self.accounts.get(name, Account()).appended
            for name, account in later.accounts.items()
        }
        return {name: rows for name, rows in come.items() if rows > 0}

    def recount(self, counted: Ledger) -> dict[str, int]:
        """Take what was counted for true where it is less; by measurement, the rows missed.

        Only where it is less: a broken record that isn't found yet may claim any number of rows.

        >>> ledger = Ledger("f", 7, {"gap": Account(9, 5, 90, 2)})
        >>> ledger.recount(Ledger("g", 7, {"gap": Account(4, 3, 60, 1), "gbp": Account(2, 2)}))
        {'gap': 3}
        >>> ledger.accounts
        {'gap': Account(appended=9, rows=3, bytes=60, quarantined=1)}
        """
        lost = {}
        for name, old in self.accounts.items():
            there = counted.accounts.get(name, Account())
            new = Account(old.appended, *map(min, old[1:], there[1:]))
            self.accounts[name] = new
            lost[name] = old.rows - new.rows + old.quarantined - new.quarantined
        return {name: rows for name, rows in lost.items() if rows}

    def new_ids(self, count: int) -> int:
        """The first of so many ids that no record ever had."""
        first = self.last + 1
        self.last += count
        return first

    def copy(self) -> Ledger:
        return Ledger(self.file, self.last, dict(self.accounts), self.damage)

    def encode(self) -> bytes:
        r"""One line with a checksum.

        >>> ledger = Ledger("f", 3, {"gap": Account(5, 2, 90)})
        >>> ledger.encode()
        b'efeb97d1 ["f",3,{"gap":[5,2,90,0]},null]\n'
        >>> Ledger.decode(ledger.encode()) == ledger, Ledger.decode(b"ab35d392 [1]\n")
        (True, None)
        """
        accounts = {name: tuple(account) for name, account in self.accounts.items()}
        damage = None if self.damage is None else tuple(self.damage)
        state = orjson.dumps([self.file, self.last, accounts, damage])
        return b"%08x %b\n" % (zlib.crc32(state), state)

    @classmethod
    def decode(cls, line: object) -> Ledger | None:
        """What `encode` made, or None where it isn't that."""
        if not isinstance(line, bytes) or not line.endswith(b"\n") or line[8:9] != b" ":
            return None
        state = line[9:-1]
        if line[:8] != b"%08x" % zlib.crc32(state):
            return None
        file, last, accounts, damage = orjson.loads(state)
        return cls(
            file,
            last,
            {name: Account(*counts) for name, counts in accounts.items()},
            None if damage is None else Damage(*damage),
        )

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Ledger | None:
        """The file's own ledger, None where it is gone or damaged."""
        found: Any = connection.execute("SELECT state FROM ledger WHERE id = 1").fetchone()
        return None if found is None else cls.decode(found[0])

    def write(self, connection: sqlite3.Connection) -> bytes:
        """Into the file, within the caller's transaction; what was written, for the copy."""
        line = self.encode()
        # Replacing the row would be simpler; updating it is a fifth of a small commit faster.
        if not connection.execute("UPDATE ledger SET state = ? WHERE id = 1", (line,)).rowcount:
            connection.execute("INSERT INTO ledger VALUES (1, ?)", (line,))
        return line

    @classmethod
    def counted(cls, connection: sqlite3.Connection) -> Ledger:
        """A new ledger of what is in the tables."""
        ledger = cls()
        for name, rows, size in connection.execute(
            "SELECT measurement, sum(rows), sum(length(payload)) FROM entries GROUP BY measurement"
        ):
            ledger.add(name, appended=rows, rows=rows, size=size)
        for name, rows in connection.execute(
            "SELECT measurement, count(*) FROM quarantine GROUP BY measurement"
        ):
            ledger.add(name, appended=rows, refused=rows)
        for table in ("entries", "quarantine"):
            (last,) = connection.execute(f"SELECT max(id) FROM {table}").fetchone()
            ledger.last = max(ledger.last, last or 0)
        return ledger


class Lock:
    """The file `<name>.lock`: held by one process, with its pid, and copies for a repair.

    The copies are the ledger, and the first page of the database, without which SQLite can read
    none of the others. They are plain writes: the kernel brings them to disk in its own time.
    """

    def __init__(self, path: Path) -> None:
        lock_path = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreUnavailable(f"outbox {path} can't be opened: {error}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            first, _, _ = os.pread(self._descriptor, _COPY_AT, 0).partition(b"\n")
            owner = first.decode(errors="replace").strip() or "unknown"
            self.close()
            raise StoreRefused(
                f"outbox {path} is in use by another process (pid {owner}): one service per outbox;"
                " stop the other one, or give this one another outbox.path"
            ) from None
        self._write(f"{os.getpid()}\n".encode().ljust(_COPY_AT), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back; the kernel does so too when the process ends."""
        os.close(self._descriptor)

    @property
    def ledger(self) -> Ledger | None:
        """The copy of the ledger."""
        found = os.pread(self._descriptor, _PAGE_AT - _COPY_AT, _COPY_AT)
        return Ledger.decode(found[: found.find(b"\n") + 1])

    def keep(self, line: bytes) -> None:
        """Copy a ledger, encoded, whose transaction is on disk."""
        self._write(line, _COPY_AT)

    @property
    def first_page(self) -> bytes | None:
        """The copy of the database's first page."""
        found = os.pread(self._descriptor, PAGE_BYTES + 4, _PAGE_AT)
        page, check = found[:PAGE_BYTES], found[PAGE_BYTES:]
        return page if check == zlib.crc32(page).to_bytes(4, "big") else None

    def keep_first_page(self, page: bytes) -> None:
        """Copy the database's first page, as it is with all its tables."""
        self._write(page + zlib.crc32(page).to_bytes(4, "big"), _PAGE_AT)

    def forget_first_page(self) -> None:
        """The copy isn't of the file that is there now."""
        self._write(bytes(PAGE_BYTES) + b"gone", _PAGE_AT)

    def _write(self, content: bytes, at: int) -> None:
        try:
            os.pwrite(self._descriptor, content, at)
        except OSError:
            return  # a disk that is full: the old copy is still true, only not of the last rows
