"""A device with a temperature sensor and a fan: the fleet says what to do, and the device does it.

    python hall_fan.py --device hall-3 --sensor /sys/class/thermal/thermal_zone0/temp
    python hall_fan.py --device hall-3 --say "it is stuffy in here, fan on please"

A decision is asked for as one of two choices, a command as JSON of a schema: there is nothing to
parse that was not asked for. And no answer, of whoever, is trusted with what must not go wrong:
above `--danger-c` the fan runs without a question, and stays on whatever anybody says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fleet_client import FleetClient
from fleet_protocol.errors import FleetError
from fleet_protocol.messages import JobResult
from fleet_protocol.settings import BrokerSettings, TlsSettings

# Bounded in every part: a small model can neither ramble nor leave anything out.
COMMAND = {
    "type": "object",
    "properties": {
        "device": {"enum": ["fan"]},
        "action": {"enum": ["turn_on", "turn_off"]},
    },
    "required": ["device", "action"],
    "additionalProperties": False,
}


def temperatures(sensor: Path | None) -> Iterator[float]:
    """Yield degrees Celsius: from a kernel's sensor file, in thousandths there, or simulated."""
    if sensor is None:
        yield from itertools.cycle((21.5, 24.0, 29.5, 33.0, 27.0))
    else:
        while True:
            yield int(sensor.read_text()) / 1_000


def is_answered(result: JobResult) -> bool:
    """Tell whether there is something to act on: `degraded` is an answer that nobody stands for."""
    return result.status == "ok" and not result.degraded


def fan_for_reading(fleet: FleetClient, temperature_c: float, limit_c: float) -> bool | None:
    """Ask whether it is too warm; None: no answer to act on. Raises FleetError."""
    result = fleet.ask(
        f"Is {temperature_c:g} C above the limit of {limit_c:g} C? Answer yes or no.",
        output={"choices": ["yes", "no"]},
        max_tokens=8,
        timeout_s=30,
    )
    report(result)
    return result.text == "yes" if is_answered(result) else None


def fan_for_words(fleet: FleetClient, words: str) -> bool | None:
    """Ask what somebody wants; None: no answer to act on. Raises FleetError."""
    result = fleet.ask(
        f"Command as JSON: {words}",
        output={"json_schema": COMMAND},
        max_tokens=32,
        timeout_s=30,
    )
    report(result)
    return json.loads(result.text)["action"] == "turn_on" if is_answered(result) else None


def report(result: JobResult) -> None:
    """Print who said what."""
    who = f"{result.answered_by or 'nobody'}, confidence {result.confidence or 0:.2f}"
    doubt = f", not acted on: {result.code or result.reason}" if not is_answered(result) else ""
    print(f"answer: {result.text or '-'} ({who}{doubt})", flush=True)


def step(fleet: FleetClient, temperature_c: float, args: argparse.Namespace) -> bool | None:
    """Return whether the fan is to run; None leaves it as it is."""
    print(f"{temperature_c:g} C", flush=True)
    if temperature_c >= args.danger_c:
        print("dangerous: the fan runs", flush=True)
        return True
    try:
        if args.say:
            return fan_for_words(fleet, args.say)
        return fan_for_reading(fleet, temperature_c, args.limit_c)
    except FleetError as error:
        print(f"no answer ({error.code}): {error.advice}", file=sys.stderr, flush=True)
        return None


def main() -> None:
    """Read, ask and act: once for `--say`, else every `--every-s` seconds."""
    args = arguments()
    broker = BrokerSettings(
        url=args.broker,
        username=args.device if args.password_file else None,
        password_file=args.password_file,
        tls=TlsSettings(ca_file=args.ca_file) if args.ca_file else None,
    )
    with FleetClient(broker, args.device) as fleet:
        for number, temperature_c in enumerate(temperatures(args.sensor), start=1):
            runs = step(fleet, temperature_c, args)
            if runs is not None:
                args.fan.write_text(f"{runs:d}\n")
            if args.say or number == args.count:
                return
            time.sleep(args.every_s)


def arguments() -> argparse.Namespace:
    """Return the command line's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", required=True, help="our id, and our name at the broker")
    parser.add_argument("--broker", default="mqtt://127.0.0.1:1883", help="mqtts:// for TLS")
    parser.add_argument("--password-file", help="its first line is the password")
    parser.add_argument("--ca-file", help="PEM of the authority that signed the broker")
    parser.add_argument("--sensor", type=Path, help="file of the kernel; simulated if not given")
    parser.add_argument("--fan", type=Path, default=Path("fan"), help="gets 0 or 1: a GPIO's value")
    parser.add_argument("--say", help="what somebody wants of the fan, in their own words")
    parser.add_argument("--limit-c", type=float, default=28.0)
    parser.add_argument("--danger-c", type=float, default=45.0)
    parser.add_argument("--every-s", type=float, default=60.0)
    parser.add_argument("--count", type=int, help="end after so many readings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
