"""What an artefact must keep of its unquantised weights, or it is not published."""

from __future__ import annotations

from typing import Final

from models.errors import VerificationError
from models.evaluate.quality import TextQuality
from models.evaluate.report import Gate, SizeShare, SuiteResult

MAX_ACCURACY_LOSS: Final = 0.023
"""Of the right answers that the unquantised weights give, so many may be lost, relative to them."""
MAX_FP32_SHARE: Final = 0.27
"""A quarter for eight bits, and 2 % of the whole for scales and tables."""
MAX_MEAN_KL_NATS: Final = 0.05
# Fewer items than these, and one answer more or less is more than the gate allows.
MIN_ASKED: Final = 200


class EvaluationGateError(VerificationError):
    """The artefact is measurably worse, or larger, than it may be.

    Attributes:
        gates: Those that failed.
    """

    code = "evaluation_gate"

    def __init__(self, gates: tuple[Gate, ...]) -> None:
        failed = "; ".join(
            f"{gate.name} is {gate.value:.4g}, more than {gate.limit:.4g}" for gate in gates
        )
        super().__init__(
            failed, hint="list the wrong answers with --wrong; other blocks or bits may keep more"
        )
        self.gates = gates


def judge(
    *,
    answers: SuiteResult,
    fp32: SuiteResult | None,
    text: TextQuality | None,
    size: SizeShare | None,
) -> tuple[Gate, ...]:
    """Return every gate with its value; None where it was not measured, or on too few items."""
    loss = None
    if fp32 is not None and fp32.total.right and answers.total.asked >= MIN_ASKED:
        loss = round(1 - answers.total.right / fp32.total.right, 5)
    return (
        Gate(name="relative accuracy loss to fp32", value=loss, limit=MAX_ACCURACY_LOSS),
        Gate(
            name="share of the fp32 size",
            value=None if size is None else size.share,
            limit=MAX_FP32_SHARE,
        ),
        Gate(
            name="divergence from fp32 in nats",
            value=None if text is None else text.mean_kl_nats,
            limit=MAX_MEAN_KL_NATS,
        ),
    )


def enforce(gates: tuple[Gate, ...]) -> None:
    """Raise EvaluationGateError where a measured value is beyond its limit."""
    failed = tuple(gate for gate in gates if gate.value is not None and not gate.is_passed)
    if failed:
        raise EvaluationGateError(failed)
