"""A teacher's answers become examples: each asked and paid for once, the useless ones dropped."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from models.artefacts.build import Build
from models.cache import FactoryCache
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, write_tiny_gguf
from models.cli import cli
from models.distill.answers import AnswerFile, Fault, Said, fault_of
from models.distill.ask import ask_teacher
from models.distill.endpoint import Endpoint, EndpointTeacher
from models.distill.mix import family_makers, load_examples
from models.distill.questions import Question, read_questions
from models.distill.teacher import ArtefactTeacher, conversation
from models.errors import ExitCode, RecipeError, TeacherError, TeacherUnavailableError
from models.progress import SilentProgress
from models.proof.verify import read_manifest
from models.suite import load_suite
from tests.unit.chat_server import ChatServer, Reply, chat_server

Run = Callable[..., Result]


def asked(prompt: str, *, family: str = "facts", system: str | None = None) -> Question:
    return Question(family=family, language="en", prompt=prompt, system=system)


def endpoint(server: ChatServer, *, at_once: int = 2, retries: int = 2) -> EndpointTeacher:
    settings = Endpoint(
        url=server.url,
        model="teacher",
        api_key="sk-secret",
        key_variable="TEACHER_KEY",
        at_once=at_once,
        max_tokens=8,
        instruction="Briefly.",
    )
    return EndpointTeacher(settings, retries=retries)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(cli, ["ask-teacher", *words])

    return invoke


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.txt"
    path.write_text("why is the sky blue?\n\nwhat is rust?\nwhat is rust?\n")
    return path


def test_a_question_is_a_line_and_none_comes_twice(questions: Path) -> None:
    read = read_questions(questions, family="facts", language="en")

    assert read == (asked("why is the sky blue?"), asked("what is rust?"))


def test_a_question_in_json_may_say_its_family_and_system_turn(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "a", "family": "units", "language": "zh", "system": "s"}\n')

    (read,) = read_questions(path, family="facts", language="en")

    assert (read.family, read.language) == ("units", "zh")
    assert read.messages == (("system", "s"), ("user", "a"))


@pytest.mark.parametrize("line", ["{", '{"prompt": ""}', '{"prompt": "a", "answer": "b"}', "3"])
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')

    with pytest.raises(RecipeError, match="line 2"):
        read_questions(path, family="facts", language="en")


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_a_file_without_questions_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "questions.txt"
    if content is not None:
        path.write_text(content)

    with pytest.raises(RecipeError):
        read_questions(path, family="facts", language="en")


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (Said(text=" A wire carries current. "), None),
        (Said(text=" \n"), Fault.EMPTY),
        (Said(text="A wire is", is_cut=True), Fault.TOO_LONG),
        (Said(text="", is_withheld=True), Fault.REFUSAL),
        (Said(text="I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I can't."), Fault.REFUSAL),
        (Said(text="As an AI language model, no."), Fault.REFUSAL),
        (Said(text="抱歉,我无法回答。"), Fault.REFUSAL),
        (Said(text="Not here."), Fault.REFUSAL),
        (Said(text="Not here, but there."), None),
        (Said(text="<<2+3|5>>5"), None),
        (Said(text="<<2+3|6>>6"), Fault.MISCALCULATED),
        (Said(text="<<2+3"), Fault.MISCALCULATED),
    ],
)
def test_an_answer_that_is_not_worth_learning_says_why(said: Said, fault: Fault | None) -> None:
    assert fault_of(asked("q"), said, refusals=("Not here.",)) == fault


def test_a_refusal_is_right_where_refusing_is_the_family() -> None:
    said = Said(text="I cannot answer that here.")

    assert fault_of(asked("q", family="refuse"), said) is None
    assert fault_of(asked("q"), said) == Fault.REFUSAL


def test_the_instruction_goes_before_the_questions_own_system_turn() -> None:
    assert conversation(asked("q", system="s"), "i") == [("system", "i\n\ns"), ("user", "q")]
    assert conversation(asked("q"), "") == [("user", "q")]


def test_answers_become_examples_without_the_teachers_instruction(
    server: ChatServer, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    with AnswerFile(path) as answers:
        report = ask_teacher(
            endpoint(server),
            [asked("one", system="s"), asked("two")],
            answers,
            SilentProgress(),
        )

    examples = {example.prompt: example for example in load_examples(path)}
    assert report.kept == 2
    assert examples["one"].answer == "ONE"
    assert examples["one"].system == "s"
    assert examples["two"].system is None
    assert {body["messages"][0]["content"] for body in server.requests} == {
        "Briefly.\n\ns",
        "Briefly.",
    }
    assert all(body["max_tokens"] == 8 for body in server.requests)
    assert not path.with_suffix(".dropped.jsonl").exists()
    assert len(family_makers(path)) == 1


def test_what_was_answered_or_dropped_is_not_asked_again(
    server: ChatServer, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    server.replies["long"] = [Reply("and so on", finish="length")]
    several = [asked("one"), asked("long"), asked("two")]
    for _ in range(2):
        with AnswerFile(path) as answers:
            report = ask_teacher(
                endpoint(server), several, answers, SilentProgress(), max_answers=2
            )

    assert (report.kept, report.known, report.left) == (1, 2, 0)
    assert [body["messages"][-1]["content"] for body in server.requests[2:]] == ["two"]
    dropped = path.with_suffix(".dropped.jsonl").read_text()
    assert '"why":"too_long"' in dropped


def test_the_same_prompt_below_another_system_turn_is_another_question(
    server: ChatServer, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    for question in (asked("one"), asked("one", system="s")):
        with AnswerFile(path) as answers:
            ask_teacher(endpoint(server), [question], answers, SilentProgress())

    assert len(load_examples(path)) == 2


def test_a_question_of_the_held_out_suite_is_not_asked(server: ChatServer, tmp_path: Path) -> None:
    taboo = f" {load_suite()[0].prompt.upper()} ??"
    with AnswerFile(tmp_path / "out.jsonl") as answers:
        report = ask_teacher(endpoint(server), [asked(taboo)], answers, SilentProgress())

    assert (report.held_out, report.kept, server.requests) == (1, 0, [])


def test_a_run_that_was_killed_in_mid_line_goes_on(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with AnswerFile(path) as answers:
        ask_teacher(endpoint(server), [asked("one")], answers, SilentProgress())
    path.write_bytes(path.read_bytes() + b'{"family":"facts","langu')

    with AnswerFile(path) as answers:
        ask_teacher(endpoint(server), [asked("one"), asked("two")], answers, SilentProgress())

    assert [example.prompt for example in load_examples(path)] == ["one", "two"]


def test_a_last_line_without_an_end_is_kept(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"family": "x", "language": "en", "prompt": "mine", "answer": "a"}')
    with AnswerFile(path) as answers:
        ask_teacher(endpoint(server), [asked("one")], answers, SilentProgress())

    assert [example.prompt for example in load_examples(path)] == ["mine", "one"]


def test_a_file_of_something_else_is_not_touched(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"id": 3}\n')
    with AnswerFile(path) as answers, pytest.raises(RecipeError, match="something else"):
        ask_teacher(endpoint(server), [asked("one")], answers, SilentProgress())

    assert path.read_text() == '{"id": 3}\n'
    assert server.requests == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_fails_for_now_is_asked_again(server: ChatServer, tmp_path: Path, status: int) -> None:
    server.replies["one"] = [Reply(status=status), Reply(status=status), Reply("fine")]
    with AnswerFile(tmp_path / "out.jsonl") as answers:
        report = ask_teacher(endpoint(server), [asked("one")], answers, SilentProgress())

    assert report.kept == 1
    assert len(server.requests) == 3


def test_answers_before_a_failure_are_kept(server: ChatServer, tmp_path: Path) -> None:
    server.replies["two"] = [Reply(status=503)]
    path = tmp_path / "out.jsonl"
    with AnswerFile(path) as answers, pytest.raises(TeacherUnavailableError) as caught:
        ask_teacher(
            endpoint(server, at_once=1),
            [asked("one"), asked("two"), asked("three")],
            answers,
            SilentProgress(),
        )

    assert [example.prompt for example in load_examples(path)] == ["one"]
    assert "goes on" in caught.value.hint


@pytest.mark.parametrize(
    ("reply", "hint"),
    [
        (Reply(status=401), "TEACHER_KEY"),
        (Reply(status=402), "top it up"),
        (Reply(status=404), "--model"),
        (Reply(html=True), "/v1"),
    ],
)
def test_a_teacher_that_is_set_up_wrongly_says_what_to_do_and_never_the_key(
    server: ChatServer, tmp_path: Path, reply: Reply, hint: str
) -> None:
    server.replies["one"] = [reply]
    teacher = endpoint(server)
    with AnswerFile(tmp_path / "out.jsonl") as answers, pytest.raises(TeacherError) as caught:
        ask_teacher(teacher, [asked("one")], answers, SilentProgress())

    assert hint in caught.value.hint
    assert len(server.requests) == 1
    assert caught.value.__cause__ is None
    assert "sk-secret" not in f"{caught.value}{caught.value.hint}{teacher._endpoint!r}"


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with chat_server() as gone:
        teacher = endpoint(gone, retries=0)
    with AnswerFile(tmp_path / "out.jsonl") as answers, pytest.raises(TeacherUnavailableError):
        ask_teacher(teacher, [asked("one")], answers, SilentProgress())


def test_the_command_asks_and_reports(
    run: Run, server: ChatServer, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    words = (str(questions), "--out", str(out), "--url", server.url, "--model", "teacher")
    result = run(*words, "--key-variable", "TEACHER_KEY", "--json")

    assert result.exit_code == ExitCode.OK, result.output
    report = msgspec.json.decode(result.stdout)
    assert (report["kept"], report["known"]) == (2, 0)
    assert server.keys == ["Bearer sk-secret"] * 2
    assert "sk-secret" not in result.output
    assert "thinking" not in server.requests[0]
    assert "were answered before" in run(*words).stdout


def test_deepseeks_key_is_sent_to_nobody_else(
    run: Run, server: ChatServer, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-deepseek")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    run(str(questions), "--out", str(tmp_path / "out.jsonl"), "--url", server.url)

    assert server.keys == ["Bearer none"] * 2


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        ((), "bad_teacher", ExitCode.CONFIG),
        (("--key-variable", "NOT_SET"), "bad_teacher", ExitCode.CONFIG),
        (("--url", "http://board.example", "--key-variable", "TEACHER_KEY"), "bad_teacher", 3),
        (("--url", "ftp://127.0.0.1"), "bad_teacher", ExitCode.CONFIG),
        (("--url", "https://u:p@127.0.0.1"), "bad_teacher", ExitCode.CONFIG),
        (("--teacher", "nobody"), "unknown_model", ExitCode.CONFIG),
        (("--teacher", "."), "verification", ExitCode.VERIFICATION),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_an_error_with_a_code(
    run: Run, questions: Path, words: Sequence[str], code: str, exit_code: int
) -> None:
    result = run(str(questions), "--out", str(questions.with_suffix(".jsonl")), *words, "--json")

    assert result.exit_code == exit_code
    assert msgspec.json.decode(result.stdout)["error"]["code"] == code
    assert not questions.with_suffix(".jsonl").exists()


def test_the_questions_are_not_overwritten(run: Run, questions: Path) -> None:
    assert run(str(questions), "--out", str(questions)).exit_code == ExitCode.USAGE


def test_without_the_sdk_a_provider_names_the_extra(
    run: Run, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "models.distill.endpoint")
    monkeypatch.setitem(sys.modules, "openai", None)
    result = run(str(questions), "--out", str(tmp_path / "o.jsonl"), "--url", "http://127.0.0.1:1")
    monkeypatch.undo()
    importlib.import_module("models.distill.endpoint")

    assert result.exit_code == ExitCode.CONFIG
    assert "edgefleet[distill]" in result.stderr


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact")
    write_tiny_gguf(folder / "tiny.gguf", TinyCheckpoint())
    recipe = tiny_entry(folder / "tiny.gguf")
    Build(recipe, FactoryCache(folder / "cache"), SilentProgress()).run(folder / "tiny")
    return folder / "tiny"


def heard(teacher: ArtefactTeacher, questions: Sequence[Question]) -> dict[str, Said]:
    found: dict[str, Said] = {}
    teacher.ask(questions, lambda question, said: found.update({question.prompt: said}))
    return found


def test_an_artefact_says_in_several_rows_what_it_says_alone(artefact: Path) -> None:
    def teacher(rows: int) -> ArtefactTeacher:
        return ArtefactTeacher(artefact, SilentProgress(), rows=rows, max_tokens=12, instruction="")

    several = [asked(prompt) for prompt in ("the cat", "12", "a the 12", "hat", "the 12 cats")]
    together = heard(teacher(3), several)

    assert together == {item.prompt: heard(teacher(1), [item])[item.prompt] for item in several}
    assert any(said.text for said in together.values())


def test_an_artefact_that_has_no_room_for_an_answer_is_cut(artefact: Path) -> None:
    manifest = read_manifest(artefact)
    teacher = ArtefactTeacher(artefact, SilentProgress(), rows=2, max_tokens=8, instruction="")
    longest = "the cat " * manifest.context_tokens

    found = heard(teacher, [asked(longest), asked("the cat")])

    assert found[longest] == Said(text="", is_cut=True)


def test_the_command_asks_an_artefact(
    run: Run, artefact: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    result = run(str(questions), "--out", str(out), "--teacher", str(artefact), "--json")

    assert result.exit_code == ExitCode.OK, result.output
    report = msgspec.json.decode(result.stdout)
    assert report["kept"] + sum(report["dropped"].values()) == 2
    assert report["teacher"].startswith("tiny 1.0.0")
