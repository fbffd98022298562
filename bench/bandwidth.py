"""How fast this machine's processor reads memory: the bound of every generated token."""

from __future__ import annotations

import ctypes
import mmap
import time
from concurrent.futures import ThreadPoolExecutor

BLOCK_BYTES = 256_000_000
_FILL = 0x2A


class ReadTest:
    """Threads that look for a byte that is not there, each in a part of one block.

    The C library's `memchr` does little else than read, with the widest loads the processor has,
    and ctypes lets go of the interpreter meanwhile. The block is far larger than any cache.
    """

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._memory = mmap.mmap(-1, BLOCK_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._block = (ctypes.c_char * BLOCK_BYTES).from_buffer(self._memory)
        # Pages that nobody wrote all are the same one.
        ctypes.memset(self._block, _FILL, BLOCK_BYTES)
        self._find = ctypes.CDLL(None).memchr
        self._find.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        self._find.restype = ctypes.c_void_p

    def gb_per_s(self, *, passes: int = 3) -> float:
        """Return 10^9 bytes read per second: the best of some passes, the others were disturbed."""
        return max(self._pass() for _ in range(passes))

    def _pass(self) -> float:
        share = BLOCK_BYTES // self._threads
        start = ctypes.addressof(self._block)
        with ThreadPoolExecutor(self._threads) as pool:
            pool.map(time.sleep, [0] * self._threads)
            started_s = time.perf_counter()
            parts = range(self._threads)
            found = list(pool.map(lambda n: self._find(start + n * share, 0, share), parts))
            took_s = time.perf_counter() - started_s
        if any(found):
            raise AssertionError("found a byte that nobody wrote")
        return share * self._threads / took_s / 1e9
