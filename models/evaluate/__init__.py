"""What a model is worth: right answers by family, distance to fp32, size, speed; and the gates."""

from models.evaluate.evaluation import Findings, Plan, evaluate_artefact, examine
from models.evaluate.gates import EvaluationGateError, enforce
from models.evaluate.report import Evaluation

__all__ = [
    "Evaluation",
    "EvaluationGateError",
    "Findings",
    "Plan",
    "enforce",
    "evaluate_artefact",
    "examine",
]
