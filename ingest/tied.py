"""A program that ends when the process that started it ends, in whatever way: Linux only.

`python -m ingest.tied PARENT PROGRAM ARGUMENTS…` has the kernel send it SIGTERM when the process
PARENT is gone, and becomes PROGRAM. It imports next to nothing, so it costs some 20 ms at the start
and nothing after. Elsewhere than on Linux it only becomes PROGRAM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the program."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        # It may have ended before it could be tied to.
        if os.getppid() != int(parent):
            sys.exit(f"{command[0]} is not started: process {parent} is gone")
    os.execvp(command[0], command)  # noqa: S606 (there is nothing that a shell could add)


if __name__ == "__main__":
    main()
