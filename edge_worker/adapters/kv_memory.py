"""Where keys and values lie: rows whose pages come and go, row 0 visible several times in a row.

Drafted tokens are checked by reading each of them as if it were a request of its own, all of them
on the keys and values of the one row. A graph wants the rows of a batch one behind the other, so
the pages of row 0 are mapped several times, one behind the other.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache
from typing import Final

import numpy as np

from edge_worker.core.batching import BYTES_PER_NUMBER, bytes_per_token
from edge_worker.core.sampling import Float32Array
from edge_worker.ports import ModelError
from fleet_protocol.manifest import Architecture

_MAP_FIXED: Final = 0x10
_MADV_REMOVE: Final = 9
_FAILED: Final = ctypes.c_void_p(-1).value


class KvMemory:
    """Keys and values of `rows` rows, `positions` tokens each.

    Attributes:
        array: float32 [layers, 2, views - 1 + rows, kv_heads, positions, head_dim]; the first
            `views` entries of the third axis are all row 0, the others the rows from 1 on.
        views: How many times row 0 is there; 1 where the system cannot map a page twice.
        positions: Tokens a row has room for, at least those asked for.
    """

    def __init__(
        self, architecture: Architecture, *, rows: int, positions: int, views: int
    ) -> None:
        """Reserve. No page is resident yet. Raises ModelError: the system refuses."""
        self._parts = architecture.layers * 2
        part_token_bytes = bytes_per_token(architecture) // self._parts
        # Only whole pages can be mapped; the rows become a little longer for it.
        self.positions = -(-positions // _tokens_per_page(part_token_bytes))
        self.positions *= _tokens_per_page(part_token_bytes)
        self._row_bytes = self.positions * part_token_bytes
        self.views = views if hasattr(os, "memfd_create") else 1
        self._entries = self.views - 1 + rows
        try:
            self._base = self._map(rows)
        except (OSError, OverflowError) as error:
            raise ModelError(
                f"the memory does not suffice: {error}",
                code="model_memory",
                hint="lower `slots` or `max_tokens`, or take a smaller model",
            ) from error
        numbers = self._parts * self._entries * self._row_bytes // BYTES_PER_NUMBER
        memory = (ctypes.c_float * numbers).from_address(self._base)
        self.array: Float32Array = np.ctypeslib.as_array(memory).reshape(
            (
                architecture.layers,
                2,
                self._entries,
                architecture.kv_heads,
                self.positions,
                architecture.head_dim,
            )
        )

    def release(self, row: int) -> None:
        """Give the pages of a row back to the system; it is zero afterwards."""
        for part in range(self._parts):
            place = (part * self._entries + self.views - 1 + row) * self._row_bytes
            _give_back(self._base + place, self._row_bytes, is_shared=self.views > 1)

    def _map(self, rows: int) -> int:
        """Return the address of the rows of each part, with further views of row 0 before them."""
        size = self._parts * self._entries * self._row_bytes
        if self.views == 1:
            return self._reserve(size, -1)
        file = os.memfd_create("keys-and-values")
        try:
            os.ftruncate(file, self._parts * rows * self._row_bytes)
            base = self._reserve(size, -1)
            for part in range(self._parts):
                place = base + part * self._entries * self._row_bytes
                offset = part * rows * self._row_bytes
                for view in range(self.views - 1):
                    _map_file(place + view * self._row_bytes, self._row_bytes, file, offset)
                rows_at = place + (self.views - 1) * self._row_bytes
                _map_file(rows_at, rows * self._row_bytes, file, offset)
        finally:
            os.close(file)
        return base

    def _reserve(self, size: int, file: int) -> int:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = _map(None, size, flags=flags, file=file, offset=0)
        weakref.finalize(self, _libc().munmap, ctypes.c_void_p(base), ctypes.c_size_t(size))
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # With huge pages the first tokens of a head would make all the rest of it resident,
            # too (8 rows: 1,070 MB in all, this way 349). A kernel without them does not know the
            # word, and says so in vain.
            _libc().madvise(ctypes.c_void_p(base), ctypes.c_size_t(size), mmap.MADV_NOHUGEPAGE)
        return base


def _tokens_per_page(token_bytes: int) -> int:
    """Return the least number of tokens that fill whole pages."""
    return int(np.lcm(token_bytes, mmap.PAGESIZE)) // token_bytes


def _map_file(address: int, size: int, file: int, offset: int) -> None:
    _map(address, size, flags=mmap.MAP_SHARED | _MAP_FIXED, file=file, offset=offset)


def _map(address: int | None, size: int, *, flags: int, file: int, offset: int) -> int:
    """Map memory as mmap(2) does; the standard library cannot say where."""
    readable = mmap.PROT_READ | mmap.PROT_WRITE
    at = _libc().mmap(
        ctypes.c_void_p(address),
        ctypes.c_size_t(size),
        readable,
        flags,
        file,
        ctypes.c_int64(offset),
    )
    if at is None or at == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(at)


def _give_back(address: int, size: int, *, is_shared: bool) -> None:
    # Pages of a file stay until a hole is made in it, whoever has let go of them.
    advice = _MADV_REMOVE if is_shared else mmap.MADV_DONTNEED
    _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    return library
