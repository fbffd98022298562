"""A prompt in a script that none of the model's languages is written in is not for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol import messages as m
from fleet_protocol import topics as t
from fleet_protocol.routing import RoutePolicy
from fleet_protocol.scripts import SCANNED_CHARS, foreign_script, script_of
from models.suite import load_reasoning, load_suite
from tests.unit.session_lab import SessionLab

SENTENCES = {
    "Arabic": "افتح الصمام رقم ثلاثة",
    "Bengali": "ভালভ খুলুন",
    "Cyrillic": "Открой клапан номер три, пожалуйста",
    "Devanagari": "वाल्व नंबर तीन खोलो",
    "Ethiopic": "ቫልቩን ክፈት እባክህ",
    "Georgian": "გახსენი სარქველი",
    "Greek": "Άνοιξε τη βαλβίδα 3",
    "Han": "打开三号阀门",
    "Hangul": "밸브 3을 열어 주세요",
    "Hebrew": "פתח את השסתום",
    "Kana": "ポンプP101の圧力は何barですか",
    "Tamil": "வால்வைத் திற",
    "Thai": "เปิดวาล์วหมายเลขสาม",
}


@pytest.mark.parametrize(("script", "sentence"), SENTENCES.items())
def test_a_sentence_is_in_its_script(script: str, sentence: str) -> None:
    assert script_of(sentence) == script
    assert foreign_script(sentence, ("en",)) == script


@pytest.mark.parametrize(
    "text",
    [
        "open valve three",
        "Öffne das Ventil, s'il vous plaît",
        "Mở van số ba",
        "What is 5 kΩ + 100 Ω in Ω?",
        "ΔT = 5 K, β = 0.2; Q?",
        "ΩΩΩΩ",
        "Classify as error, warning or info: ошибка записи на диск",
        "42 %",
        "🙂🙂🙂",
        "",
    ],
)
def test_latin_letters_signs_and_mixtures_decide_nothing(text: str) -> None:
    assert script_of(text) is None


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("東京の人口は何人ですか", "Kana"),
        ("温度を教えてください", "Kana"),
        ("把“の”翻译成中文", "Han"),
        ("二号水泵的出口压力是 6.4 bar", "Han"),
    ],
)
def test_kana_tells_japanese_from_chinese(text: str, script: str) -> None:
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("languages", "is_foreign"),
    [
        (("en", "zh"), True),
        (("ru",), False),
        (("uk", "en"), False),
        (("RU-ru",), False),
        (("xx",), True),
        ((), False),
    ],
)
def test_any_language_of_the_script_will_do(
    languages: tuple[str, ...], *, is_foreign: bool
) -> None:
    found = foreign_script(SENTENCES["Cyrillic"], languages)
    assert found == ("Cyrillic" if is_foreign else None)


def test_nothing_of_the_suite_is_foreign_to_the_languages_it_is_in() -> None:
    items = [*load_suite(), *load_reasoning()]
    assert [item.id for item in items if foreign_script(item.prompt, ("en", "zh"))] == []


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    assert script_of("é" + "a" * SCANNED_CHARS + SENTENCES["Thai"] * 1_000) is None


@given(st.text())
def test_any_text_has_one_script_or_none(text: str) -> None:
    assert script_of(text) is None or script_of(text * 2) == script_of(text)


# ------------------------------------------------------------ in a session

RUSSIAN = {"messages": (m.ChatMessage(role=m.ChatRole.USER, content=SENTENCES["Cyrillic"]),)}


def lab() -> SessionLab:
    return SessionLab(policy=RoutePolicy(context_tokens=100, languages=("en", "zh")))


def test_a_worker_hands_on_what_its_model_cannot_read() -> None:
    board = lab()
    board.assign(**RUSSIAN)
    board.encode_all()
    (escalation,) = board.told(t.ESCALATE, "J1")
    assert escalation.reason is m.Reason.UNSUPPORTED
    assert escalation.detail == "the prompt is in Cyrillic script, the model was made for en, zh"
    assert board.engine == {}


@pytest.mark.parametrize("bound", [{"privacy": m.Privacy.SITE}, {"escalate": m.Escalate.NEVER}])
def test_a_worker_tries_where_the_job_may_not_leave_and_keeps_that_to_such_jobs(
    bound: dict[str, object],
) -> None:
    board = lab()
    board.run("J1", **RUSSIAN, **bound, cache_ttl_ms=60_000)
    board.assign("J2", **RUSSIAN, cache_ttl_ms=60_000)
    board.encode_all()
    assert len(board.told(t.DONE, "J1")) == 1
    (escalation,) = board.told(t.ESCALATE, "J2")
    assert escalation.reason is m.Reason.UNSUPPORTED
