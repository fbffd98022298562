"""What `fleet demo` asks: prompts that a 135M model without further training answers decently.

It cannot follow instructions well, but continues a pattern: so the labelled examples travel along.
"""

from __future__ import annotations

import msgspec

from fleet_client.options import JobOptions, Question

_LOG_LABELS = (
    ("backup finished in 12 s", "OK"),
    ("disk failure on sda1", "ERROR"),
    ("user logged in", "OK"),
    ("connection to database failed", "ERROR"),
)
_READINGS = (
    ("Sensor 12 in the hall reports 21 degrees.", "sensor=12 value=21"),
    ("Sensor 3 in the yard reports 8 degrees.", "sensor=3 value=8"),
)
_PARTS = ("pump", "valve", "motor", "fan", "sensor", "belt", "relay")
_FINDINGS = ("pressure low", "no fault found", "seal replaced", "noise at start", "cleaned")
_DOCUMENT_LINES = 420


class DemoJob(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to show.

    Attributes:
        title: What it shows.
        shown: The prompt in short.
        streams: Show the answer while it grows.
    """

    id: str
    title: str
    shown: str
    question: Question
    max_tokens: int
    streams: bool = False

    @property
    def options(self) -> JobOptions:
        """How it is submitted."""
        return {"max_tokens": self.max_tokens, "stream": self.streams}


def demo_jobs(run: str) -> tuple[DemoJob, ...]:
    """Return the jobs; `run` makes their ids new, or old results would be replayed."""
    colours, log_line = "Name three primary colors.", "sensor 4 failed to respond"
    reading = "Sensor 7 in the cold store reports 4 degrees."
    return (
        DemoJob(
            id=f"question-{run}",
            title="A question, answered on the edge while its tokens stream",
            shown=colours,
            question=colours,
            max_tokens=48,
            streams=True,
        ),
        DemoJob(
            id=f"classification-{run}",
            title="A classification on the edge: is this log line an ERROR or OK?",
            shown=f"{log_line}   (after {len(_LOG_LABELS)} labelled examples)",
            question=_by_example(_LOG_LABELS, log_line),
            max_tokens=4,
        ),
        DemoJob(
            id=f"extraction-{run}",
            title="An extraction on the edge: a sentence becomes fields",
            shown=f"{reading}   (after {len(_READINGS)} examples)",
            question=_by_example(_READINGS, reading),
            max_tokens=16,
        ),
        DemoJob(
            id=f"document-{run}",
            title="A document too long for any edge model here: escalated to the cloud",
            shown=f"Summarise this maintenance log: {_DOCUMENT_LINES} lines ...",
            question=_long_document(),
            max_tokens=96,
            streams=True,
        ),
    )


def _by_example(examples: tuple[tuple[str, str], ...], text: str) -> list[dict[str, str]]:
    turns = []
    for said, answer in examples:
        turns += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    return [*turns, {"role": "user", "content": text}]


def _long_document() -> str:
    lines = (
        f"{n // 60:02}:{n % 60:02} {_PARTS[n % 7]} {n % 9 + 1}: {_FINDINGS[n % 5]}"
        for n in range(_DOCUMENT_LINES)
    )
    return "Summarise this maintenance log in one sentence.\n" + "\n".join(lines)
