"""What a prompt's text shows before anything is generated: numbers for a model of its difficulty.

The factory fits on them and a worker scores with them, so both must read them here. A change of
any of them is another `FEATURE_VERSION`: weights of one version mean nothing for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import log1p, log10
from typing import Final

FEATURE_VERSION: Final = 1

FEATURE_NAMES: Final = (
    "log_chars",
    "log_words",
    "log_sentences",
    "log_words_per_sentence",
    "log_lines",
    "word_length",
    "repeated_words",
    "log_numbers",
    "largest_number_digits",
    "number_share",
    "parts_of_numbers",
    "money_and_percent",
    "questions",
    "asks_for_fact",
    "asks_for_reason",
    "asks_for_amount",
    "calculation_words",
    "comparison_words",
    "condition_words",
    "time_and_order_words",
    "writing_words",
    "choosing_words",
    "names",
    "code_marks",
    "structure_marks",
    "han_share",
    "other_script_share",
)
"""In the order of `prompt_features`."""

SCANNED_CHARS: Final = 4096
"""Of a longer prompt only so many from its start are looked at; its length counts in full."""

_WORD: Final = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")
_PART: Final = re.compile(r"\d[./:]\d")
_SENTENCE_END: Final = re.compile(r"[.!?\u3002\uff01\uff1f]+(?:\s|$|(?<=[\u3002\uff01\uff1f]))")
_NAME: Final = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+")
_HAN: Final = re.compile(r"[\u3400-\u9fff]")
_OTHER_SCRIPT: Final = re.compile(r"[^\x00-\u024f\u2000-\u206f\u3000-\u9fff\uff00-\uffef]")
_CODE: Final = re.compile(r"```|[{};]|\(\)|==|!=|=>|->|::|\bdef |\breturn\b|</?[a-z]+>")
_STRUCTURE: Final = re.compile(
    r"(?m)^\s*(?:[-*•]|\d+[.)])\s|\bjson\b|\bkeys?\b|键|字段", re.IGNORECASE
)
_MONEY_AND_PERCENT: Final = re.compile(r"[$€£¥%‰°]|美元|元")

# One family a word; a word in two of them would be counted by neither alone.
_WORDS: Final[dict[str, str]] = {
    "asks_for_fact": "what which who whom whose where when name define",
    "asks_for_reason": "why how explain describe compare discuss prove derive reason because",
    "asks_for_amount": "many much long far often total altogether amount number calculate compute",
    "calculation_words": "each per every twice double triple half third quarter times plus minus "
    "sum difference product divided percent average ratio remaining left rest cost costs price "
    "paid earns spends convert equals equally",
    "comparison_words": "more less than above below over under exceed exceeds fewer greater larger "
    "smaller most least older younger faster slower higher lower same",
    "condition_words": "if unless except otherwise only not no never without instead but although "
    "either neither both assuming suppose",
    "time_and_order_words": "first then next after before later finally during until while day "
    "days week weeks month months year years hour hours minute minutes again",
    "writing_words": "write rewrite translate summarize summarise essay story poem letter draft "
    "paragraph report code function program script",
    "choosing_words": "classify label category choose select pick extract one yes true false "
    "correct turn set switch open close start stop lock",
}
_HAN_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "asks_for_fact": ("什么", "哪", "谁"),
    "asks_for_reason": ("为什么", "怎么", "如何", "解释"),
    "asks_for_amount": ("多少", "几", "多久", "多长", "计算"),
    "calculation_words": ("每", "倍", "一半", "加", "减", "乘", "除", "平均", "剩", "换算"),
    "comparison_words": ("比", "超过", "高于", "低于", "大于", "小于", "最"),
    "condition_words": ("如果", "除非", "否则", "但", "不", "没"),
    "time_and_order_words": ("先", "然后", "之后", "以前", "天", "小时", "分钟", "年"),
    "writing_words": ("写", "翻译", "总结", "改写", "代码"),
    "choosing_words": ("分类", "判断", "提取", "打开", "关闭", "是否"),
}
_FAMILIES: Final = tuple(_WORDS)
_FAMILY_OF: Final = {
    word: place for place, family in enumerate(_FAMILIES) for word in _WORDS[family].split()
}


def prompt_features(prompt: str) -> tuple[float, ...]:
    """Return the features of a prompt, in the order of `FEATURE_NAMES`; all finite.

    Takes well below 0.2 ms for a prompt of a few sentences, and is bounded for any.
    """
    text = prompt[:SCANNED_CHARS]
    words = _WORD.findall(text.lower())
    numbers = _NUMBER.findall(text)
    han = len(_HAN.findall(text)) if not text.isascii() else 0
    # Two Han characters are about a word.
    word_count = len(words) + han // 2
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    return (
        log1p(len(prompt)),
        log1p(word_count),
        log1p(sentences),
        log1p(word_count / sentences),
        log1p(text.count("\n")),
        sum(map(len, words)) / len(words) if words else 0.0,
        1.0 - len(set(words)) / len(words) if words else 0.0,
        log1p(len(numbers)),
        _largest_digits(numbers),
        len(numbers) / max(1, word_count + len(numbers)),
        log1p(len(_PART.findall(text))),
        log1p(len(_MONEY_AND_PERCENT.findall(text))),
        log1p(text.count("?") + text.count("\uff1f")),
        *_family_counts(words, text, has_han=han > 0),
        log1p(len(_NAME.findall(text))),
        log1p(len(_CODE.findall(text))),
        log1p(len(_STRUCTURE.findall(text))),
        han / max(1, len(text)),
        0.0 if text.isascii() else len(_OTHER_SCRIPT.findall(text)) / len(text),
    )


def _family_counts(words: Iterable[str], text: str, *, has_han: bool) -> list[float]:
    """Return log(1 + words of the family) a family."""
    counts = [0] * len(_FAMILIES)
    for word in words:
        place = _FAMILY_OF.get(word)
        if place is not None:
            counts[place] += 1
    if has_han:
        for place, family in enumerate(_FAMILIES):
            counts[place] += sum(text.count(word) for word in _HAN_WORDS[family])
    return [log1p(count) for count in counts]


def _largest_digits(numbers: list[str]) -> float:
    """Return about how many digits the largest number has before its decimal point, at most 12."""
    largest = 0.0
    for number in numbers:
        whole = number.replace(",", "").partition(".")[0][:12]
        largest = max(largest, log10(1 + int(whole)) if whole.isdigit() else 0.0)
    return largest
