"""What the offline answer library says to a question, and what it keeps silent about."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleet_protocol
from fleet_protocol.library import (
    LOOKED_AT_CHARS,
    Entry,
    Library,
    LibraryAnswer,
    MatchKind,
    question_of,
)
from fleet_protocol.library_file import LibraryFileError, parse_library
from fleet_protocol.messages import ChatMessage, ChatRole

EXAMPLE = Path(fleet_protocol.__file__).with_name("library.example.toml")

TWO_ENTRIES = """[[entry]]
name = "a"
answer = "x"
exact = ["Q?"]
[[entry]]
name = "b"
answer = "x"
exact = ["q"]
"""


def entry(name: str = "e", answer: str = "yes", **fields: object) -> Entry:
    return Entry(name=name, answer=answer, **fields)  # type: ignore[arg-type]


def best(library: Library, question: str | None) -> LibraryAnswer | None:
    return next(library.answers(question), None)


def kind_of(library: Library, question: str) -> str:
    found = best(library, question)
    return "nothing" if found is None else str(found.kind)


class TestExact:
    @pytest.mark.parametrize(
        "question",
        ["Is the door shut?", "is the door  shut", " IS THE DOOR SHUT? ", "Is the door shut\uff1f"],
    )
    def test_capitals_spaces_and_the_final_mark_do_not_count(self, question: str) -> None:
        assert kind_of(Library([entry(exact=("Is the door shut?",))]), question) == "exact"

    @pytest.mark.parametrize("question", ["Is the door -5 shut", "Is the door shut now", "door"])
    def test_anything_else_counts(self, question: str) -> None:
        assert kind_of(Library([entry(exact=("Is the door 5 shut",))]), question) == "nothing"

    def test_it_goes_before_a_pattern_and_a_pattern_before_an_example(self) -> None:
        library = Library(
            [
                entry("near", nearest=("reset the pump now",)),
                entry("pattern", pattern=("reset *",)),
                entry("exact", exact=("reset the pump now",)),
            ],
            default="?",
        )
        kinds = [answer.kind for answer in library.answers("Reset that pump now!")]
        assert [str(kind) for kind in kinds] == ["pattern", "nearest", "default"]
        kinds = [answer.kind for answer in library.answers("reset the pump now.")]
        assert kinds == list(MatchKind)


class TestPattern:
    @pytest.mark.parametrize(
        ("pattern", "question", "fits"),
        [
            ("turn on the *", "Turn on the light", True),
            ("turn on the *", "please turn on the light", False),
            ("turn on the *", "turn on the", True),
            ("* light", "the light", True),
            ("* light", "the lights", False),
            ("* gas * smell *", "is gas what I smell", True),
            ("* gas * smell *", "I smell gas", False),
            ("* gas gas *", "a gas b gas", False),
            ("gas * gas", "gas", False),
            ("gas * gas", "gas gas", True),
            ("set * to 5", "set it to 5", True),
            ("set * to 5", "set it to -5", False),
            ("status", "Status?", True),
            ("status", "status now", False),
            ("*煤气*泄漏*", "厨房里的煤气好像泄漏了", True),
            ("*煤气*泄漏*", "泄漏的不是煤气", False),
            ("* 100% *", "is it 100 % full", True),
        ],
    )
    def test_it_fits_whole_words_and_the_whole_question(
        self, pattern: str, question: str, *, fits: bool
    ) -> None:
        library = Library([entry(pattern=(pattern,))])
        assert (kind_of(library, question) == "pattern") is fits

    def test_the_one_with_more_words_wins_then_the_first_one(self) -> None:
        library = Library(
            [
                entry("wide", pattern=("* pump *",)),
                entry("narrow", pattern=("* pump * leaking",)),
                entry("later", pattern=("* leaking pump *", "* is leaking")),
            ]
        )
        found = best(library, "the pump is leaking")
        assert found is not None
        assert (found.entry, found.matched) == ("narrow", "* pump * leaking")

    def test_many_stars_on_a_long_question_take_no_time(self) -> None:
        library = Library([entry(pattern=("* a " * 60 + "b",))])
        started_s = time.perf_counter()
        assert kind_of(library, "a " * (LOOKED_AT_CHARS // 2)) == "nothing"
        assert time.perf_counter() - started_s < 1.0


class TestNearest:
    LIBRARY = Library(
        [
            entry("filter", nearest=("when must I change the filter",)),
            entry("boil", nearest=("what is the boiling point of water",)),
            entry("on", nearest=("turn on the pump in the cellar",)),
            entry("cold", nearest=("is 4 degrees below 8 degrees",)),
            entry("zh", nearest=("客服什么时候在线",)),
        ]
    )

    @pytest.mark.parametrize(
        ("question", "name"),
        [
            ("When do we have to change the filters?", "filter"),
            ("boiling point of water?", "boil"),
            ("Please turn on the cellar pump", "on"),
            ("客服什么时候上线", "zh"),
        ],
    )
    def test_a_question_in_other_words_is_found(self, question: str, name: str) -> None:
        found = best(self.LIBRARY, question)
        assert found is not None
        assert (found.kind, found.entry) == (MatchKind.NEAREST, name)
        assert 0.6 <= found.score <= 1.0

    @pytest.mark.parametrize(
        "question",
        [
            "Turn off the pump in the cellar",
            "do not turn on the pump in the cellar",
            "is 8 degrees below 4 degrees",
            "is 4 degrees below 9 degrees",
            "what is the melting point of lead",
            "Who wrote Hamlet?",
            "",
            "?!",
        ],
    )
    def test_what_means_something_else_is_not(self, question: str) -> None:
        assert best(self.LIBRARY, question) is None

    def test_what_keeps_a_close_example_from_being_the_answer_is_named(self) -> None:
        (row, *_) = self.LIBRARY.near("Turn off the pump in the cellar")
        assert (row.entry, row.differs, row.is_close) == ("on", ("off", "on"), False)
        assert row.score > row.least

    def test_two_entries_that_are_equally_close_answer_nothing(self) -> None:
        library = Library(
            [
                entry("a", nearest=("reset the pump of hall north",)),
                entry("b", nearest=("reset the pump of hall south",)),
            ]
        )
        assert best(library, "reset the pump of the hall") is None
        found = best(library, "reset the pump of hall south please")
        assert found is not None
        assert found.entry == "b"

    def test_an_entry_may_ask_for_more_likeness(self) -> None:
        question = "When do we have to change the filters?"
        strict = Library([entry(nearest=("when must I change the filter",), least=0.99)])
        assert best(strict, question) is None

    def test_an_entry_more_changes_no_other_score(self) -> None:
        question = "boiling point of water?"
        more = Library([*self.LIBRARY.entries, entry("x", nearest=("the water pump has a point",))])
        assert more.near(question)[0] == self.LIBRARY.near(question)[0]


class TestDefaultAndLanguages:
    def test_without_a_default_nothing_is_said(self) -> None:
        assert best(Library([entry(exact=("a",))]), "b") is None
        assert not Library([]).has_default

    def test_a_question_that_cannot_be_told_gets_the_default_alone(self) -> None:
        library = Library([entry(pattern=("a *",))], default="later")
        for question in (None, "a " * LOOKED_AT_CHARS):
            (only,) = library.answers(question)
            assert (only.text, only.kind, only.entry, only.score) == ("later", "default", "", 0.0)

    @pytest.mark.parametrize(
        ("question", "text"),
        [("hello", "E"), ("你好", "C"), ("こんにちは", "J"), ("привет", "E"), (None, "E")],
    )
    def test_the_script_chooses_the_language(self, question: str | None, text: str) -> None:
        default = {"zh": "C", "en": "E", "de": "D", "ja": "J"}
        found = best(Library([], default=default), question)
        assert found is not None
        assert found.text == text

    def test_a_language_that_is_not_there_gets_what_is(self) -> None:
        found = best(Library([], default={"zh": "C"}), "hello")
        assert found is not None
        assert found.text == "C"


class TestQuestionOf:
    def turn(self, role: str, text: str = "x") -> ChatMessage:
        return ChatMessage(role=ChatRole(role), content=text)

    def test_one_turn_of_a_user_is_a_question_whatever_the_instructions(self) -> None:
        assert question_of([self.turn("user", "q")]) == "q"
        assert question_of([self.turn("system"), self.turn("user", "q")]) == "q"

    def test_what_hangs_on_earlier_turns_is_none(self) -> None:
        turns = [self.turn("user"), self.turn("assistant"), self.turn("user", "and now?")]
        assert question_of(turns) is None
        assert question_of(turns[:2]) is None
        assert question_of([]) is None


class TestFile:
    def test_the_example_answers_what_it_says_it_does(self) -> None:
        library = parse_library(EXAMPLE.read_text())
        for asked, name, kind in (
            ("at what temperature does water boil", "boiling-point", "exact"),
            ("How many degrees must water reach to boil?", "boiling-point", "nearest"),
            ("I smell gas in the kitchen", "gas-smell", "pattern"),
            ("我闻到厨房里有煤气味", "gas-smell", "pattern"),
            ("How often should I replace the filter?", "filter-change", "nearest"),
            ("What colour is the sky?", "", "default"),
        ):
            found = best(library, asked)
            assert found is not None
            assert (found.entry, found.kind) == (name, kind), asked
        found = best(library, "我闻到厨房里有煤气味")
        assert found is not None
        assert "煤气" not in found.text
        assert "燃气" in found.text

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("entry = 3", ["entry"]),
            ("[[entry]", ["not TOML", "line 1"]),
            ("version = 2", ["version"]),
            ("nearest_least = 1.5", ["nearest_least"]),
            ('dafault = "x"', ["dafault"]),
            ('\n[[entry]]\nname = "a"\nexact = ["x"]', ["entry number 1 (line 2)", "answer"]),
            ('[[entry]]\nname = "a"\nanswer = "x"', ["'a' (line 1)", "no question"]),
            ('[[entry]]\nname = "a"\nanswer = "x"\npattern = ["*"]', ["'a'", "no word"]),
            ('[[entry]]\nname = "a"\nanswer = "x"\nnearest = ["?"]', ["'a'", "no word"]),
            ('[[entry]]\nname = "a b"\nanswer = "x"\nexact = ["x"]', ["name"]),
            ('[[entry]]\nname = "a"\nanswer = {EN = "x"}\nexact = ["x"]', ["answer"]),
            ('[[entry]]\nname = "a"\nanswer = {}\nexact = ["x"]', ["answer"]),
            (
                '[[entry]]\nname = "a"\nanswer = "x"\nexact = ["x"]\n' * 2,
                ["'a' (line 5)", "another of that name"],
            ),
            (TWO_ENTRIES, ["'b' (line 5)", "in 'a' already"]),
            (f'default = "{"x" * 9_000}"', ["default"]),
        ],
    )
    def test_a_mistake_is_named_with_its_place(self, text: str, words: list[str]) -> None:
        with pytest.raises(LibraryFileError) as caught:
            parse_library(text, origin="my.toml")
        assert caught.value.code == "bad_library"
        assert caught.value.hint
        for word in ["my.toml", *words]:
            assert word in str(caught.value)

    def test_a_file_has_a_bound(self) -> None:
        many = ", ".join(f'"q {number}"' for number in range(5_001))
        with pytest.raises(LibraryFileError, match="questions"):
            parse_library(f'[[entry]]\nname = "a"\nanswer = "x"\nexact = [{many}]')
        with pytest.raises(LibraryFileError, match="bytes"):
            parse_library("#" * 5_000_000)


@given(st.text(max_size=300), st.text(max_size=300))
def test_whatever_is_written_and_asked_nothing_breaks(written: str, asked: str) -> None:
    library = Library([entry(exact=(written,), pattern=(f"*{written}*",), nearest=(written,))])
    for answer in library.answers(asked):
        assert answer.text == "yes"
        assert 0.0 <= answer.score <= 1.0
    assert kind_of(library, written) == "exact"
