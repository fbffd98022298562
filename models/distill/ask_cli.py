"""`python -m models ask-teacher`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
import msgspec

from models.distill.answers import AnswerFile
from models.distill.ask import AskReport, ask_teacher
from models.distill.questions import read_questions
from models.distill.teacher import ArtefactTeacher, Teacher
from models.errors import MissingExtraError, TeacherError
from models.progress import Progress
from models.terminal import find_artefact, json_option, print_json, show_progress

_DEEPSEEK: Final = "https://api.deepseek.com"
_DEEPSEEK_KEY: Final = "DEEPSEEK_API_KEY"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
# It would think before it answers, at a price, and short answers need none of it.
_WITHOUT_THOUGHT: Final[dict[str, object]] = {"thinking": {"type": "disabled"}}
_INSTRUCTION: Final = (
    "Answer correctly and as briefly as the question allows: plain text, no markdown, nothing "
    "beside the answer."
)
_FILE: Final = click.Path(dir_okay=False, path_type=Path)


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asked, and how; as on the command line."""

    teacher: str | None
    url: str
    model: str
    key_variable: str | None
    instruction: str
    max_tokens: int
    at_once: int


@click.command("ask-teacher", short_help="Let a better model answer; that makes examples.")
@click.argument("questions", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="File of examples; new ones are added.")
@click.option("--teacher", help="A built model's name, or an artefact's folder.")
@click.option("--url", default=_DEEPSEEK, show_default=True, help="Of another provider.")
@click.option("--model", default="deepseek-flash", show_default=True, help="The provider's.")
@click.option(
    "--key-variable",
    help=f"Environment variable of the API key.  [{_DEEPSEEK_KEY}, for DeepSeek alone]",
)
@click.option(
    "--instruction", default=_INSTRUCTION, help="For the teacher alone, before each question."
)
@click.option("--family", default="facts", show_default=True, help="Of questions without one.")
@click.option("--language", default="en", show_default=True, help="Of questions without one.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=96,
    show_default=True,
    help="Longer answers are dropped.",
)
@click.option(
    "--max-answers", type=click.IntRange(min=1), help="Ask no more questions than this, this time."
)
@click.option("--at-once", type=click.IntRange(1, 256), default=8, show_default=True)
@json_option
def ask_teacher_command(
    questions: Path,
    *,
    out: Path,
    family: str,
    language: str,
    max_answers: int | None,
    as_json: bool,
    **asking: object,
) -> None:
    """Let a better model answer QUESTIONS; what it says becomes examples for `distill --family`.

    QUESTIONS holds one question a line, or (.jsonl) objects with prompt and, if they like, family,
    language and system. The teacher is a model that this factory built, or an OpenAI-compatible
    provider: DeepSeek, where $DEEPSEEK_API_KEY is set. The key is read from the environment alone,
    and sent to another --url only if you name its variable.

    Refusals, empty answers and those that are too long are dropped, into a file beside OUT;
    questions of the held-out suite are not asked. The same command goes on where it stopped.
    """
    how = msgspec.convert(asking, Asking)
    if out.resolve() == questions.resolve():
        raise click.UsageError("--out must be another file than the questions'")
    asked = read_questions(questions, family=family, language=language)
    with show_progress(as_json=as_json) as progress:
        teacher = open_teacher(how, os.environ, progress)
        with AnswerFile(out) as answers:
            report = ask_teacher(teacher, asked, answers, progress, max_answers=max_answers)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _print(report)


def open_teacher(asking: Asking, environ: Mapping[str, str], progress: Progress) -> Teacher:
    """Return the teacher.

    Raises:
        UnknownModelError, VerificationError: There is no such artefact, or it is none.
        TeacherError: The key is missing or none, or the address would show it to the network.
        MissingExtraError: A provider is asked, and `openai` is not installed.
    """
    if asking.teacher is not None:
        return ArtefactTeacher(
            find_artefact(asking.teacher),
            progress,
            rows=asking.at_once,
            max_tokens=asking.max_tokens,
            instruction=asking.instruction,
        )
    is_deepseek = asking.url.rstrip("/") == _DEEPSEEK
    variable = asking.key_variable or (_DEEPSEEK_KEY if is_deepseek else None)
    _refuse_unsafe(asking.url, has_key=variable is not None)
    key = "" if variable is None else _key(variable, environ)
    try:
        # Half a second to import, and not everybody has it.
        from models.distill.endpoint import Endpoint, EndpointTeacher  # noqa: PLC0415 - see above
    except ImportError as error:
        raise MissingExtraError(
            f"a provider is asked through {error.name}", hint="pip install 'edgefleet[distill]'"
        ) from error
    return EndpointTeacher(
        Endpoint(
            url=asking.url,
            model=asking.model,
            api_key=key,
            key_variable=variable,
            at_once=asking.at_once,
            max_tokens=asking.max_tokens,
            instruction=asking.instruction,
            extra=_WITHOUT_THOUGHT if is_deepseek else {},
        )
    )


def _refuse_unsafe(url: str, *, has_key: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.password is not None:
        raise TeacherError(
            "--url is not https://HOST, or holds a password",
            hint="name the address alone, and the key's variable with --key-variable",
        )
    if has_key and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise TeacherError(
            f"{parts.hostname} would get the key unencrypted", hint="name an https address"
        )


def _key(variable: str, environ: Mapping[str, str]) -> str:
    key = environ.get(variable, "").strip()
    if not key:
        raise TeacherError(
            f"${variable} holds no API key",
            hint="set it, or name a built model with --teacher",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise TeacherError(
            f"${variable} holds something that is not an API key",
            hint="it must be one word of plain ASCII; copy it again from the provider's page",
        )
    return key


def _print(report: AskReport) -> None:
    click.echo(f"{report.out}: {report.kept} answers of {report.teacher}")
    if report.dropped:
        reasons = ", ".join(f"{count} {why}" for why, count in report.dropped.items())
        click.echo(f"  dropped: {reasons}")
    for count, told in (
        (report.known, "were answered before"),
        (report.held_out, "are asked by the held-out suite, and were not asked"),
        (report.left, "are left for another run"),
    ):
        if count:
            click.echo(f"  {count} questions {told}")
    click.echo(f"  next: python -m models distill RECIPE --family {report.out} --out ADAPTER")
