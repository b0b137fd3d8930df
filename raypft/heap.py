"""Freed memory that this process keeps.

glibc gives large blocks back to the kernel as they are freed; faulting them in again costs a fifth of a CPU training
step (benchmarks/freed_memory.py), so it is told to keep them. Kept blocks pile up: what lives a little longer lies in
the middle of one that a next request would fit into, and the heap grows from step to step. So all that is free goes
back whenever this process holds half as much again as it held after it last did.
"""

from __future__ import annotations

import ctypes
import os
import sys

PILED, AT_LEAST = 1.5, 1 << 28
"""How many times what was held is too much, and bytes below which it is not looked at."""
STATM = "/proc/self/statm"


class Heap:
    """What is kept, and when it goes back; on Linux, elsewhere nothing is done.

    limit: bytes from which on it goes back; 0 until what is held is known, a batch after the last time.
    """

    def __init__(self) -> None:
        self.limit = 0.0
        self.libc: ctypes.CDLL | None = ctypes.CDLL(None) if sys.platform == "linux" else None

    def keep(self, keep: bool) -> None:
        """Keep freed memory from here on; or let large blocks go at once, where memory is what is short."""
        if self.libc is not None:
            self.libc.mallopt(-4, 0 if keep else 2**16)  # M_MMAP_MAX: how many large blocks have their own mapping
            self.libc.mallopt(-3, 2**18)  # M_MMAP_THRESHOLD: what is large, which else grows with what is freed
            self.libc.mallopt(-1, 2**31 - 1 if keep else 2**20)  # M_TRIM_THRESHOLD
            self.limit = 0.0

    def settle(self) -> None:
        """Between two batches: give back what is free, if it has piled up."""
        if self.libc is not None:
            held = own_pages()
            if not self.limit:
                self.limit = PILED * held + AT_LEAST
            elif held > self.limit:
                self.give_back()

    def give_back(self) -> None:
        """All that is free."""
        if self.libc is not None:
            self.libc.malloc_trim(0)
            self.limit = 0.0


def own_pages() -> int:
    """Bytes of memory that this process alone holds: no pages of files."""
    file = os.open(STATM, os.O_RDONLY)  # in half the time of a Path, before every batch
    try:
        _, resident, of_files, *_ = os.read(file, 256).split()
    finally:
        os.close(file)
    return (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")


HEAP = Heap()
"""That of this process."""
