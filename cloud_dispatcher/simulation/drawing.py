"""A picture of a comparison, as SVG: which share of the jobs took longer than what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from cloud_dispatcher.simulation.comparison import PolicyRow
from cloud_dispatcher.simulation.figures import TAIL

_WIDTH, _HEIGHT = 860, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 250, 48, 52
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by those who see fewer colours, too (Okabe and Ito)."""
_SHARES: Final = ((0.5, "p50"), (0.05, "p95"), (0.01, "p99"))
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:15px}"
    ".note{fill:#777;font-size:11px}.grid{stroke:#ddd}.line{fill:none;stroke-width:2}"
)


def draw_svg(rows: Sequence[PolicyRow], *, title: str) -> str:
    """Return the picture: one falling line a policy, both axes logarithmic."""
    spans = [max(span, 1.0) for row in rows for span in row.tail_ms]
    least = 10 ** math.floor(math.log10(min(spans)))
    most = max(10 ** math.ceil(math.log10(max(spans))), least * 10)
    plane = _Plane(least, most)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>',
        *plane.grid(),
        *(part for number, row in enumerate(rows) for part in _line(plane, number, row)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Plane:
    """Where a span and a share are in the picture."""

    def __init__(self, least_ms: float, most_ms: float) -> None:
        self._first, self._last = math.log10(least_ms), math.log10(most_ms)

    def x(self, span_ms: float) -> float:
        part = (math.log10(max(span_ms, 1.0)) - self._first) / (self._last - self._first)
        return _LEFT + max(part, 0.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, share: float) -> float:
        part = math.log10(share) / math.log10(TAIL[-1])
        return _TOP + part * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> Iterator[str]:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for power in range(round(self._first), round(self._last) + 1):
            x = self.x(10**power)
            yield f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_span(power)}</text>'
        for share, name in _SHARES:
            y = self.y(share)
            yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
        middle = (_LEFT + right) / 2
        yield (
            f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">'
            "from submission to answer; each line: the share of jobs that took longer</text>"
        )


def _line(plane: _Plane, number: int, row: PolicyRow) -> Iterator[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    points = " ".join(
        f"{plane.x(span):.1f},{plane.y(share):.1f}"
        for share, span in zip(TAIL, row.tail_ms, strict=True)
    )
    x, y = _WIDTH - _RIGHT + 16, _TOP + 12 + 56 * number
    yield f'<polyline class="line" stroke="{colour}" points="{points}"/>'
    yield f'<path stroke="{colour}" stroke-width="3" d="M{x} {y - 4}h18"/>'
    yield f'<text x="{x + 24}" y="{y}">{escape(row.policy)}</text>'
    spans = (row.p50_ms.mean, row.p95_ms.mean, row.p99_ms.mean)
    notes = (
        "p50, 95, 99: " + ", ".join(f"{span / 1_000:.3g}" for span in spans) + " s",
        f"{row.in_time.mean:.1%} in time, {row.busy.mean:.0%} busy",
        f"fairness {row.fairness.mean:.2f}",
    )
    for place, note in enumerate(notes, start=1):
        yield f'<text class="note" x="{x + 24}" y="{y + 14 * place}">{note}</text>'


def _span(power: int) -> str:
    return f"{10**power} ms" if power < 3 else f"{10 ** (power - 3)} s"
