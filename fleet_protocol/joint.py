"""How much travels in one message where several may travel together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

_T = TypeVar("_T")

JOINT_MAX: Final = 64
"""Jobs, or answers, in one message."""
JOINT_CHARS: Final = 65_536
"""Characters of them together: below each message's limit in any script. A longer goes alone."""


def joint_groups(items: Iterable[_T], chars_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Yield the items in order, as many in a group as one message may hold."""
    group: list[_T] = []
    chars = 0
    for item in items:
        size = chars_of(item)
        if group and (len(group) == JOINT_MAX or chars + size > JOINT_CHARS):
            yield group
            group, chars = [], 0
        group.append(item)
        chars += size
    if group:
        yield group
