"""Lists of timed events, and the one sentence that sums them up."""

from __future__ import annotations

import random
from typing import Final

from models.distill.example import Example

_SUBJECTS: Final = (
    "front door",
    "back door",
    "garage gate",
    "pump",
    "boiler",
    "kitchen light",
    "fan",
    "motor",
    "conveyor",
    "freezer",
    "camera",
    "router",
    "heater",
    "compressor",
    "valve",
    "generator",
    "window",
    "greenhouse vent",
    "charger",
    "server",
    "alarm",
    "lift",
    "sprinkler",
    "oven",
    "main switch",
    "backup battery",
    "loading bay",
    "tank heater",
    "printer",
    "gateway",
)
_ACTS: Final = (
    ("opened", "opened"),
    ("closed", "closed"),
    ("started", "started"),
    ("stopped", "stopped"),
    ("on", "was switched on"),
    ("off", "was switched off"),
    ("offline", "went offline"),
    ("back online", "came back online"),
    ("restarted", "restarted"),
    ("failed", "failed"),
    ("overheated", "overheated"),
    ("tripped", "tripped"),
    ("reset by operator", "was reset"),
    ("locked", "was locked"),
    ("unlocked", "was unlocked"),
    ("serviced", "was serviced"),
)
_READINGS: Final = (
    ("temperature {n} C", "the temperature reached {n} C"),
    ("temperature {n} degrees", "the temperature was {n} degrees"),
    ("humidity {n}%", "the humidity was {n}%"),
    ("pressure {n} bar", "the pressure was {n} bar"),
    ("level {n}%", "the level was {n}%"),
    ("power {n} W", "the power was {n} W"),
    ("battery {n}%", "the battery was at {n}%"),
    ("{n} people counted", "{n} people were counted"),
)
_ASKS: Final = (
    "Summarise these events in one sentence.",
    "Sum up in one sentence:",
    "One sentence summary please.",
    "What happened? One sentence.",
    "Write one sentence about these events.",
    "Summarize the log in a single sentence.",
    "Give me a one-sentence report.",
    "Describe the following events in one sentence.",
    "Put this list of events into one sentence.",
    "Short summary (one sentence) of the log below.",
)
_MINUTES_A_DAY: Final = 24 * 60


def make_summary(chance: random.Random) -> Example:
    """Return three to six events with the sentence that names them all."""
    count = chance.choices((3, 4, 5, 6), (4, 4, 2, 1))[0]
    minutes = sorted(chance.sample(range(_MINUTES_A_DAY), count))
    times = [f"{minute // 60:02}:{minute % 60:02}" for minute in minutes]
    events = [_event(chance) for _ in range(count)]
    separator = chance.choice((" ", " - ", ": ", " | ", ", "))
    lines = [f"{time}{separator}{line}" for time, (line, _) in zip(times, events, strict=True)]
    listed = chance.choice(("\n", "\n", "\n- ", "; ")).join(lines)
    ask = chance.choice(_ASKS)
    prompt = f"{ask}\n{listed}" if chance.random() < 0.75 else f"{listed}\n{ask}"
    return Example(
        family="summary",
        language="en",
        prompt=prompt,
        answer=_sentence(times, [told for _, told in events]),
    )


def _event(chance: random.Random) -> tuple[str, str]:
    """Return an event as a log says it and as a sentence does."""
    if chance.random() < 0.25:
        line, told = chance.choice(_READINGS)
        number = str(chance.randint(2, 99))
        return line.replace("{n}", number), told.replace("{n}", number)
    subject = chance.choice(_SUBJECTS)
    line, told = chance.choice(_ACTS)
    return f"{subject} {line}", f"the {subject} {told}"


def _sentence(times: list[str], told: list[str]) -> str:
    if len(told) > 4:
        body = f"{', '.join(told[:-1])} and {told[-1]}"
        return f"Between {times[0]} and {times[-1]}, {body}."
    timed = [f"{what} at {time}" for what, time in zip(told, times, strict=True)]
    sentence = f"{', '.join(timed[:-1])} and {timed[-1]}."
    return sentence[0].upper() + sentence[1:]
