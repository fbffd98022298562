"""The rows' memory: the first row's further views, and pages that come and go."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from edge_worker.adapters.kv_memory import KvMemory
from edge_worker.ports import ModelError
from fleet_protocol.manifest import Architecture

ARCHITECTURE = Architecture(layers=2, kv_heads=1, head_dim=64, vocab=9)


def memory(views: int, *, rows: int = 2, positions: int = 1_024) -> KvMemory:
    return KvMemory(ARCHITECTURE, rows=rows, positions=positions, views=views)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4_096


def test_all_views_are_the_first_row_and_nothing_else() -> None:
    kv = memory(views=3)
    assert kv.array.shape[2] == 4
    kv.array[:, :, 1, :, 5] = 7
    assert np.all(kv.array[:, :, :3, :, 5] == 7)
    assert not kv.array[:, :, 3].any()
    kv.array[:, :, 3] = 2
    assert not kv.array[:, :, :3, :, 6].any()


def test_a_row_has_at_least_the_room_that_was_asked_for() -> None:
    kv = memory(views=2, positions=17)
    assert kv.positions >= 17
    assert kv.array.shape[4] == kv.positions


@pytest.mark.parametrize("views", [1, 3])
def test_a_released_row_is_zero_and_its_memory_is_given_back(views: int) -> None:
    kv = memory(views, rows=2, positions=65_536)
    kv.array[:, :, views:] = 1
    before = resident_bytes()
    kv.release(1)
    assert resident_bytes() < before - 32_000_000
    assert not kv.array[:, :, views].any()


def test_releasing_one_row_leaves_the_others() -> None:
    kv = memory(views=2)
    kv.array[:] = 3
    kv.release(1)
    assert np.all(kv.array[:, :, :2] == 3)


def test_all_of_it_is_given_back_in_the_end() -> None:
    before = len(Path("/proc/self/maps").read_text().splitlines())
    kv = memory(views=8)
    assert len(Path("/proc/self/maps").read_text().splitlines()) > before
    del kv
    gc.collect()
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= before + 1


def test_more_than_the_system_has_is_said() -> None:
    with pytest.raises(ModelError) as refusal:
        memory(views=1, positions=1 << 44)
    assert refusal.value.code == "model_memory"
