"""A small disk of its own, in memory, that can be full: a tmpfs, which only root can mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLENTY_BYTES = 6 * 2**30
SPARE_BYTES = 64 * 2**10


class SmallDisk:
    """Mounted at `folder`; `fill` leaves no room on it, `free` gives the room back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self) -> None:
        found = os.statvfs(self._folder)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self._resize(used + SPARE_BYTES)

    def free(self) -> None:
        self._resize(PLENTY_BYTES)

    def _resize(self, size: int) -> None:
        _mount(f"remount,size={size}", self._folder)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount one; PermissionError where that isn't allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _mount(f"size={PLENTY_BYTES}", folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError(f"no tmpfs can be mounted here: {error}") from error
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S607


def _mount(options: str, folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
