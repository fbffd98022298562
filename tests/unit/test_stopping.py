"""When an answer ends, and what of it is shown before that."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_worker.core.stopping import AnswerText, StopRule, first_stop, held_back
from fleet_protocol.calculation import VisibleText
from fleet_protocol.messages import FinishReason

END = 0


def take_all(
    pieces: list[bytes], *, stops: tuple[str, ...] = (), max_tokens: int = 10_000
) -> tuple[list[str], AnswerText]:
    """Feed pieces until the answer is finished; return what was shown at each of them."""
    answer = AnswerText(StopRule(tokens=frozenset({END}), texts=stops, max_tokens=max_tokens))
    shown = []
    for piece in pieces:
        shown.append(answer.take(1, piece))
        if answer.finish is not None:
            break
    return shown, answer


def test_text_is_shown_as_it_comes() -> None:
    shown, answer = take_all([b"Hel", b"lo"])
    assert shown == ["Hel", "lo"]
    assert (answer.text, answer.finish, answer.tokens) == ("Hello", None, 2)


def test_a_stop_token_ends_the_answer_and_is_not_shown() -> None:
    _, answer = take_all([b"Yes"])
    assert answer.take(END, b"</s>") == ""
    assert (answer.text, answer.finish, answer.tokens) == ("Yes", FinishReason.STOP, 2)


def test_the_last_allowed_token_ends_the_answer() -> None:
    shown, answer = take_all([b"a", b"b", b"c"], max_tokens=2)
    assert shown == ["a", "b"]
    assert answer.finish is FinishReason.LENGTH


def test_a_stop_token_at_the_limit_is_a_stop() -> None:
    answer = AnswerText(StopRule(tokens=frozenset({END}), max_tokens=1))
    answer.take(END, b"")
    assert answer.finish is FinishReason.STOP


def test_a_character_is_shown_when_its_last_byte_has_come() -> None:
    smile = "🙂".encode()
    assert take_all([smile[:1], smile[1:3], smile[3:] + b"!"])[0] == ["", "", "🙂!"]


def test_a_character_cut_by_the_end_is_not_shown() -> None:
    _, answer = take_all([b"ok", "é".encode()[:1]], max_tokens=2)
    assert answer.text == "ok"


def test_bytes_that_are_no_text_are_left_out() -> None:
    _, answer = take_all([b"a\xff", b"\xc3", b"b", b"\x80c"])
    assert answer.text == "abc"


def test_a_stop_text_ends_the_answer_across_tokens() -> None:
    shown, answer = take_all([b"one", b"\nUs", b"er: two"], stops=("\nUser:",))
    assert shown == ["one", "", ""]
    assert (answer.text, answer.finish) == ("one", FinishReason.STOP)


def test_what_may_begin_a_stop_text_is_held_back_until_it_does_not() -> None:
    shown, answer = take_all([b"a\nU", b"m", b"\n"], stops=("\nUser:",))
    assert shown == ["a", "\nUm", ""]
    assert answer.end() == "\n"
    assert answer.text == "a\nUm\n"


def test_what_was_held_back_is_shown_at_the_limit() -> None:
    shown, _ = take_all([b"a\n"], stops=("\nUser:",), max_tokens=1)
    assert shown == ["a\n"]


def test_the_stop_text_that_is_complete_first_counts() -> None:
    assert first_stop("abcd", ("bcd", "c")) == 2
    assert first_stop("abcd", ("bcd", "cd")) == 1
    assert first_stop("abcd", ("x",)) is None


def test_as_much_is_held_back_as_the_longest_beginning() -> None:
    assert held_back("a##", ("###", "#!")) == 2
    assert held_back("a#", ("###", "#!")) == 1
    assert held_back("###", ("##",)) == 1
    assert held_back("abc", ()) == 0


@given(
    text=st.text(alphabet="aé🙂#\n", max_size=30),
    stops=st.lists(st.text(alphabet="aé🙂#\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 120), max_size=20),
)
def test_the_answer_does_not_depend_on_where_tokens_are_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(borders)]
    shown, answer = take_all(pieces, stops=tuple(stops))
    rest = answer.end() if answer.finish is None else ""
    _, by_bytes = take_all([bytes([byte]) for byte in data], stops=tuple(stops))
    if by_bytes.finish is None:
        by_bytes.end()
    assert answer.text == "".join(shown) + rest == by_bytes.text
    assert text.startswith(answer.text)
    assert not any(stop in answer.text for stop in stops)


def hiding(*pieces: str, stops: tuple[str, ...] = (), max_tokens: int = 99, spare: int = 0) -> str:
    """Return what is shown, and why it ended, of an answer with calculations."""
    rule = StopRule(texts=stops, max_tokens=max_tokens, spare_tokens=spare)
    answer = AnswerText(rule, calculations=VisibleText())
    for piece in pieces:
        if answer.finish is None:
            answer.take(1, piece.encode())
    return f"{answer.text} {answer.finish or 'goes on'} {answer.left_tokens}"


def test_what_only_looked_like_a_mark_is_shown_at_the_end() -> None:
    assert hiding("a", "<", max_tokens=2) == "a< length 0"
    assert hiding("a", "<", max_tokens=2, stops=("<",)) == "a stop 0"
    assert hiding("a", "<", "b", stops=("a<",)) == " stop 96"


def test_calculations_do_not_count_as_long_as_there_are_spare_tokens() -> None:
    sums = ("<<", "1", "|", "1", ">>")
    assert hiding("a", *sums, "b", max_tokens=2, spare=5) == "ab length 0"
    assert hiding("a", *sums, "b", max_tokens=2, spare=4) == "a length 0"
    assert hiding("a", *sums, max_tokens=3, spare=5) == "a goes on 2"
    # Within one, what is spare is still to come.
    assert hiding("a", *sums[:2], max_tokens=3, spare=5) == "a goes on 5"


def test_stop_texts_are_looked_for_as_if_calculations_were_not_there() -> None:
    assert hiding("1|", "<<1|1>>", "x", stops=("1|1", "|x")) == "1 stop 96"
