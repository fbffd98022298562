"""Kinds of boards, in figures. All but one are modelled: only one machine was ever measured."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Annotated, Final

import msgspec

_Rate = Annotated[float, msgspec.Meta(gt=0.0)]

_ROWS_TOK_S: Final = ((1, 67.0), (2, 100.0), (4, 136.0), (8, 141.0))
"""Tokens per second of so many jobs together. Measured: ORT, blocks of 32, 2 cores of an AMD EPYC
Milan. Boards are taken to gain as much from batches."""


class BoardKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a kind of board can do with the default model of 135 million parameters.

    Attributes:
        decode_tok_s: Tokens written per second, one job alone.
        prefill_tok_s: Prompt tokens read per second.
        bandwidth_mbps: Payload megabits per second to the dispatcher and back.
        latency_ms: One way over the link, the broker included.
        slots: Jobs answered at once.
        prefetch: Jobs held beyond that.
        source: Where the figures come from.
    """

    decode_tok_s: _Rate
    prefill_tok_s: _Rate
    bandwidth_mbps: _Rate = 50.0
    latency_ms: Annotated[float, msgspec.Meta(ge=0.0, le=60_000.0)] = 5.0
    slots: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    prefetch: Annotated[int, msgspec.Meta(ge=0, le=256)] = 1
    source: str = "as the scenario says"

    @property
    def read_cost(self) -> float:
        """Reading a prompt token over writing one."""
        return self.decode_tok_s / self.prefill_tok_s


KINDS: Final[dict[str, BoardKind]] = {
    "pi4": BoardKind(
        decode_tok_s=20.0,
        prefill_tok_s=60.0,
        bandwidth_mbps=30.0,
        latency_ms=12.0,
        source="modelled: 0.6 of 5 GB/s over 143 MB a token; no dot products, so reading is slow",
    ),
    "pi5": BoardKind(
        decode_tok_s=46.0,
        prefill_tok_s=300.0,
        bandwidth_mbps=60.0,
        latency_ms=8.0,
        source="modelled: 0.6 of 11 GB/s over 143 MB a token; reading 6.6 times as fast as writing",
    ),
    "jetson": BoardKind(
        decode_tok_s=165.0,
        prefill_tok_s=1_100.0,
        bandwidth_mbps=100.0,
        latency_ms=3.0,
        source="modelled: Orin Nano at 25 W, as published for llama.cpp on CUDA (smolhub.com)",
    ),
    "milan": BoardKind(
        decode_tok_s=87.0,
        prefill_tok_s=367.0,
        bandwidth_mbps=100.0,
        latency_ms=1.0,
        source="measured: 2 cores of an AMD EPYC Milan, 8-bit blocks of 32",
    ),
}
"""0.6 is the share of its memory's bandwidth that the measured machine reaches (0.56 to 0.68), 143
MB what the model reads for each token; the boards' bandwidths are assumptions."""


@cache
def batch_gain(jobs: int) -> float:
    """Return how many times as fast so many jobs together are as one alone."""
    alone = _ROWS_TOK_S[0][1]
    for (few, slower), (many, faster) in pairwise(_ROWS_TOK_S):
        if jobs <= many:
            return (slower + (faster - slower) * (max(jobs, few) - few) / (many - few)) / alone
    return _ROWS_TOK_S[-1][1] / alone
