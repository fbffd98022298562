"""A small vocabulary as SentencePiece makes it for Gemma: scored pieces, bytes as a fallback."""

from __future__ import annotations

from models.checkpoints.tokenizer import GgufVocabulary, build_tokenizer_json

SPACE = "\u2581"
CONTROLS = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
USER_DEFINED = ("\n\n", SPACE * 2, f"{SPACE}xy")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# In the order in which they were learnt: the earlier, the better the score.
PIECES = (
    *("th", "the", f"{SPACE}the", "\u00e9", "\u4f60\u597d", "in", f"{SPACE}a", "na"),
    *("t", "h", "e", "i", "n", "a", SPACE, "s", "o", "\n", "\u4f60", "\u597d"),
)
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

VOCABULARY = GgufVocabulary(
    model="llama",
    tokens=[*CONTROLS, "<unk>", *USER_DEFINED, *BYTES, *PIECES],
    kinds=[
        *[_CONTROL] * len(CONTROLS),
        _UNKNOWN,
        *[_USER_DEFINED] * len(USER_DEFINED),
        *[_BYTE] * len(BYTES),
        *[_NORMAL] * len(PIECES),
    ],
    merges=[],
    scores=[
        *[0.0] * (len(CONTROLS) + 1 + len(USER_DEFINED) + len(BYTES)),
        *[-float(place) for place in range(len(PIECES))],
    ],
    pre_tokenizer="default",
)
JSON = build_tokenizer_json(VOCABULARY)
