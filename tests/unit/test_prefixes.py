"""Which beginnings of prompts are kept, shared, and given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_worker.core.prefixes import KeptBlock, PrefixTree

SYSTEM = (1, 2, 3, 4)


def tree(blocks: int = 4) -> PrefixTree:
    return PrefixTree(blocks=blocks, block_tokens=2)


def keep(kept: PrefixTree, *tokens: int) -> list[KeptBlock]:
    return kept.keep(tokens, tokens=len(tokens))


def test_a_prompt_starts_from_the_whole_blocks_it_shares() -> None:
    kept = tree()
    new = keep(kept, *SYSTEM, 5, 6, 7)
    assert [block.start for block in new] == [0, 2, 4]
    blocks = [block.block for block in new]
    assert kept.match((*SYSTEM, 9, 9)) == blocks[:2]
    assert kept.match((1, 2, 9, 9)) == blocks[:1]
    assert kept.match((9, 2, 3, 4)) == []


def test_the_last_token_of_a_prompt_is_always_left_to_read() -> None:
    kept = tree()
    keep(kept, *SYSTEM)
    assert len(kept.match(SYSTEM)) == 1
    assert len(kept.match((*SYSTEM, 5))) == 2


def test_a_common_beginning_is_kept_once() -> None:
    kept = tree()
    keep(kept, *SYSTEM, 5, 6)
    assert [block.start for block in keep(kept, *SYSTEM, 7, 8)] == [4]
    assert keep(kept, *SYSTEM, 7, 8) == []


def test_the_same_tokens_after_another_beginning_are_another_block() -> None:
    kept = tree()
    keep(kept, 1, 2, 5, 6)
    assert kept.match((3, 4, 5, 6, 7)) == []
    assert kept.match((5, 6, 7)) == []


def test_only_what_was_read_is_kept() -> None:
    kept = tree()
    assert kept.keep((*SYSTEM, 5), tokens=3) == [KeptBlock(3, 0)]


def test_the_least_recently_used_end_makes_room() -> None:
    kept = tree(blocks=3)
    keep(kept, *SYSTEM)
    keep(kept, 7, 8)
    assert len(kept.match((*SYSTEM, 0))) == 2
    keep(kept, 9, 9)
    assert kept.match((7, 8, 0)) == []
    assert len(kept.match((*SYSTEM, 0))) == 2
    keep(kept, 5, 5)
    keep(kept, 6, 6)
    assert len(kept.match((*SYSTEM, 0))) == 1


def test_a_prompt_longer_than_the_memory_keeps_its_beginning() -> None:
    kept = tree(blocks=2)
    assert len(keep(kept, *SYSTEM, 5, 6, 7, 8)) == 2
    assert len(kept.match((*SYSTEM, 5))) == 2


def test_without_memory_nothing_is_kept() -> None:
    kept = tree(blocks=0)
    assert keep(kept, *SYSTEM) == []
    assert kept.match(SYSTEM) == []


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), max_size=9).map(tuple), max_size=30),
    blocks=st.integers(0, 5),
)
def test_a_match_is_what_was_stored_for_exactly_these_tokens(
    prompts: list[tuple[int, ...]], blocks: int
) -> None:
    kept = tree(blocks)
    stored: dict[int, tuple[int, ...]] = {}
    for prompt in prompts:
        chain = kept.match(prompt)
        assert len(chain) * 2 < max(len(prompt), 1)
        for place, block in enumerate(chain):
            assert stored[block] == prompt[: 2 * place + 2]
        for block, start in kept.keep(prompt, tokens=len(prompt)):
            assert block in range(blocks)
            stored[block] = prompt[: start + 2]
        assert len(kept) <= blocks
