"""`--not-before` and its kin: what a device would submit, and how long the command waits for it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fleet_cli.__main__ import run
from fleet_cli.broker import BrokerProcess
from fleet_cli.deferral import patience_s
from fleet_cli.exits import ExitCode
from fleet_cli.limits import limit_options
from fleet_client.options import JobOptions, build_submit
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import JobSubmit, Needs
from tests.unit.test_cli_defer import Submissions

ALL = [
    *("--not-before", "1m", "--start-within", "90", "--attempt-limit", "2m"),
    *("--lease", "5s", "--label", "site=north"),
]


def asked(submit: JobSubmit) -> tuple[object, ...]:
    spans = (submit.not_before_ms, submit.start_within_ms, submit.attempt_ms, submit.lease_ms)
    return (*spans, submit.label)


@click.command()
@limit_options
def show(limits: JobOptions) -> None:
    click.echo(repr(limits))


@pytest.mark.parametrize(
    ("text", "span_ms"),
    [
        ("90", 90_000),
        ("90s", 90_000),
        ("1.5m", 90_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("500ms", 500),
    ],
)
def test_spans_are_read_as_people_write_them(text: str, span_ms: int) -> None:
    done = CliRunner().invoke(show, ["--not-before", text])
    assert done.stdout.strip() == repr({"not_before_ms": span_ms})


@pytest.mark.parametrize("text", ["soon", "-1", "1w", "", "1e3"])
def test_what_is_no_span_is_said_to_be_none(text: str) -> None:
    done = CliRunner().invoke(show, ["--lease", text])
    assert (done.exit_code, "is no span" in done.stderr) == (2, True)


def test_without_any_a_job_says_nothing_of_them() -> None:
    assert CliRunner().invoke(show, []).stdout.strip() == "{}"


def test_what_waits_by_wish_is_waited_for_from_then_on() -> None:
    assert patience_s(None, defer="no", usual_s=120.0, not_before_ms=60_000) == 180.0
    assert patience_s(7.0, defer="no", usual_s=120.0, not_before_ms=60_000) == 7.0


def test_a_question_says_them_and_so_do_all_lines_that_say_nothing_else(
    mosquitto: BrokerProcess, tmp_path: Path
) -> None:
    lines = tmp_path / "jobs.jsonl"
    lines.write_text(
        '{"id": "a", "prompt": "x"}\n'
        '{"id": "b", "prompt": "x", "not_before_ms": 5, "needs": {"label": "camera"}}\n'
    )
    where = ["--broker", mosquitto.url, *ALL]
    usual = (60_000, 90_000, 120_000, 5_000, "site=north")
    with Submissions(mosquitto.port) as submissions:
        assert run(["submit", "-f", str(lines), *where]) == ExitCode.OK
        told = {job: asked(submit) for job, submit in submissions.seen.items()}
        assert told == {"a": usual, "b": (5, 90_000, 120_000, 5_000, "camera")}
        submissions.seen.clear()
        where[where.index("1m")] = "1s"
        assert run(["ask", "x", *where, "--timeout", "3"]) == ExitCode.TIMEOUT
        (submit,) = submissions.seen.values()
    assert asked(submit) == (1_000, *usual[1:])
    assert submit.deadline_ms == 3_000


def test_a_client_may_give_needs_as_a_mapping_or_a_struct() -> None:
    for needs in ({"label": "camera"}, Needs(label="camera")):
        assert build_submit("x", needs=needs).label == "camera"
    with pytest.raises(RejectedError, match="lease_ms"):
        build_submit("x", lease_ms=5)
