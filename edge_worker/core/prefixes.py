"""Which beginnings of prompts are kept, and which of them a new prompt can start from.

A beginning is a chain of blocks of equal size. A block is named by the block before it and its own
tokens, so that prompts with a common beginning share its blocks. Blocks are exactly the chunks in
which prompts are read: what is computed for a token differs in its last bits between chunk sizes,
and an answer must not depend on what was kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

_ROOT = -1

_Link: TypeAlias = tuple[int, tuple[int, ...]]
"""The block before (`_ROOT`: none) and the tokens of a block."""


class KeptBlock(NamedTuple):
    """A block whose keys and values must be stored: those from token `start` of the prompt on."""

    block: int
    start: int


class PrefixTree:
    """The blocks that are kept, numbered from 0; the least recently used one makes room."""

    def __init__(self, *, blocks: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._free = list(range(blocks))
        self._by_link: dict[_Link, int] = {}
        # From the least recently used one on. A block is never used without those before it, and
        # they count as used after it: whoever comes first here has no block behind it.
        self._links: OrderedDict[int, _Link] = OrderedDict()

    def __len__(self) -> int:
        return len(self._links)

    def match(self, prompt: tuple[int, ...]) -> list[int]:
        """Return the kept blocks that `prompt` starts with, in order; they count as used now.

        Never all of the prompt: its last token must be read to know what comes next.
        """
        chain: list[int] = []
        for link in self._walk(prompt, tokens=len(prompt) - 1, chain=chain):
            block = self._by_link.get(link)
            if block is None:
                break
            chain.append(block)
        self._use(chain)
        return chain

    def keep(self, prompt: tuple[int, ...], *, tokens: int) -> list[KeptBlock]:
        """Keep the whole blocks among the first `tokens` of a prompt; return the new ones."""
        chain: list[int] = []
        new: list[KeptBlock] = []
        for link in self._walk(prompt, tokens=tokens, chain=chain):
            block = self._by_link.get(link)
            if block is None:
                block = self._make_room(chain)
                if block is None:
                    break
                self._by_link[link] = block
                self._links[block] = link
                new.append(KeptBlock(block, len(chain) * self._block_tokens))
            chain.append(block)
        self._use(chain)
        return new

    def _walk(self, prompt: tuple[int, ...], *, tokens: int, chain: list[int]) -> Iterator[_Link]:
        """Name the prompt's whole blocks; the caller appends each block's number to `chain`."""
        size = self._block_tokens
        for start in range(0, tokens - size + 1, size):
            yield (chain[-1] if chain else _ROOT), prompt[start : start + size]

    def _use(self, chain: list[int]) -> None:
        for block in reversed(chain):
            self._links.move_to_end(block)

    def _make_room(self, chain: list[int]) -> int | None:
        """Return a free block; None if only the chain that is being kept could make room."""
        if self._free:
            return self._free.pop()
        # All of the chain must stay, the last one first: it has nothing behind it yet.
        self._use(chain)
        oldest = next(iter(self._links), None)
        if oldest is None or oldest in chain:
            return None
        del self._by_link[self._links.pop(oldest)]
        return oldest
