"""What `fleet demo` asks: one prompt of each kind that devices put to the default model."""

from __future__ import annotations

import msgspec

from fleet_client.options import JobOptions

_PARTS = ("pump", "valve", "motor", "fan", "sensor", "belt", "relay")
_FINDINGS = ("pressure low", "no fault found", "seal replaced", "noise at start", "cleaned")
_DOCUMENT_LINES = 420
_SHOWN_CHARS = 110


class DemoJob(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to show.

    Attributes:
        title: What it shows.
        streams: Show the answer while it grows.
    """

    id: str
    title: str
    question: str
    max_tokens: int
    streams: bool = False

    @property
    def shown(self) -> str:
        """The prompt on one line, in short."""
        line = " ".join(self.question.split())
        return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}..."

    @property
    def options(self) -> JobOptions:
        """How it is submitted."""
        return {"max_tokens": self.max_tokens, "stream": self.streams}


def demo_jobs(run: str) -> tuple[DemoJob, ...]:
    """Return the jobs; `run` makes their ids new, or old results would be replayed."""
    return (
        DemoJob(
            id=f"question-{run}",
            title="A question, answered on the edge while its tokens stream",
            question="What is the capital of France?",
            max_tokens=48,
            streams=True,
        ),
        DemoJob(
            id=f"command-{run}",
            title="A command on the edge: what somebody says becomes JSON",
            question=(
                "Turn the command into JSON with the keys device, action and value.\n"
                "Please dim the hallway lamp to 40 percent."
            ),
            max_tokens=48,
        ),
        DemoJob(
            id=f"classification-{run}",
            title="A classification on the edge: one of the labels, nothing else",
            question=(
                "Classify the log line as one of: error, warning, info.\n"
                "disk sda1: write failed, data lost"
            ),
            max_tokens=8,
        ),
        DemoJob(
            id=f"extraction-{run}",
            title="An extraction on the edge: a sentence becomes fields",
            question=(
                "Extract room, temperature and humidity as JSON.\n"
                "The cold store is at 4.5 degrees with 81% humidity."
            ),
            max_tokens=48,
        ),
        DemoJob(
            id=f"threshold-{run}",
            title="A limit on the edge: the model writes the sum down, the board computes it",
            question="The pressure is 3.2 bar, the limit is 3.0 bar. Is it too high? Yes or no?",
            max_tokens=8,
        ),
        DemoJob(
            id=f"refusal-{run}",
            title="What a board should not try: the model says so, and the cloud answers",
            question="What is the weather in Oslo right now?",
            max_tokens=48,
        ),
        DemoJob(
            id=f"document-{run}",
            title="A document too long for any edge model here: escalated to the cloud",
            question=_long_document(),
            max_tokens=96,
            streams=True,
        ),
    )


def _long_document() -> str:
    lines = (
        f"{n // 60:02}:{n % 60:02} {_PARTS[n % 7]} {n % 9 + 1}: {_FINDINGS[n % 5]}"
        for n in range(_DOCUMENT_LINES)
    )
    return "Summarise this maintenance log in one sentence.\n" + "\n".join(lines)
