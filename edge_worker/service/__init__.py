"""The worker's shell: carries out what the session decides. The only loop that awaits."""

from edge_worker.service.benchmark import GoldenReport, golden_report, measure_speed
from edge_worker.service.loop import Pace, ServiceParts, WorkerService
from edge_worker.service.runner import EngineRunner

__all__ = [
    "EngineRunner",
    "GoldenReport",
    "Pace",
    "ServiceParts",
    "WorkerService",
    "golden_report",
    "measure_speed",
]
