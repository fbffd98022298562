"""Text to tokens and back, with the model's chat template.

A conversation is rendered by the template and encoded as a whole, except that what looks like a
control token inside the *contents* is cut in two first: a device's prompt must not be able to end
its turn and speak as somebody else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from edge_worker.ports import ModelError
from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import ChatMessage

_SPACE = "\u2581"
"""What SentencePiece, and tokenizers that came from it, write for a space."""
_FALLBACK_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
CUT = "\ufdd0"
"""Marks where a control token inside a content was cut; a noncharacter, so no text has it."""


class ChatTokenizer:
    """The tokenizer of one artefact.

    Byte-level BPE, or BPE of text that falls back to bytes: every token stands for exact bytes,
    wherever in an answer it stands.
    """

    def __init__(
        self,
        path: Path,
        *,
        chat_template: str,
        stop_tokens: Sequence[int],
        data: bytearray | None = None,
    ) -> None:
        """Load the file, or `data`, where it is sealed on the disk.

        Raises:
            ModelError: No `tokenizers` JSON, no bytes a token, or a bad template.
        """
        self._tokenizer, decoder = _load(path, data)
        self._is_byte_level = decoder == "ByteLevel"
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._template = _compile(chat_template)
        ending = self._added.get(stop_tokens[0]) if stop_tokens else None
        self._ending = ending.content if ending else ""
        self._pieces: dict[int, bytes] = {}

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return the tokens of a conversation up to where the assistant's answer begins.

        Raises:
            RejectedError: `bad_conversation`: the template refuses it (e.g. the order of roles).
        """
        turns = [
            {"role": turn.role.value, "content": self._disarm(turn.content)} for turn in messages
        ]
        try:
            prompt = self._template.render(
                messages=turns, add_generation_prompt=True, bos_token="", eos_token=self._ending
            )
        except (TemplateError, TypeError) as error:
            raise RejectedError(
                f"the model's chat template refuses this conversation: {error}",
                code="bad_conversation",
            ) from error
        parts = [part for part in prompt.split(CUT) if part]
        return tuple(number for part in parts for number in self.encode_text(part))

    def encode_text(self, text: str) -> list[int]:
        """Return the tokens of raw text; control tokens in it are honoured, none is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Return the tokens of text as it stands in an answer: control tokens are none here."""
        parts = (part for part in self._disarm(text).split(CUT) if part)
        return [number for part in parts for number in self.encode_text(part)]

    def pieces(self, vocab: int) -> list[bytes]:
        """Return what `piece` says of the tokens 0..vocab - 1; unlike it, without keeping it."""
        return [self._look_up(token) for token in range(vocab)]

    def piece(self, token: int) -> bytes:
        """Return the bytes a token stands for: none for control tokens and unknown ids.

        They may be part of a character only.
        """
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._look_up(token)
        return piece

    def _look_up(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None and added.special:
            return b""
        name = self._tokenizer.id_to_token(token) or ""
        if self._is_byte_level:
            if added is not None:
                return added.content.encode()
            return bytes(_BYTE_OF[char] for char in name if char in _BYTE_OF)
        byte = _FALLBACK_BYTE.fullmatch(name)
        return bytes.fromhex(byte[1]) if byte else name.replace(_SPACE, " ").encode()

    @cached_property
    def _control_pattern(self) -> re.Pattern[str] | None:
        # Blank and single-character added tokens are text that was added to the vocabulary.
        texts = (token.content for token in self._added.values())
        names = [text for text in texts if len(text) > 1 and text.strip()]
        # The longest first: the tokenizer, too, prefers it.
        names.sort(key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def _disarm(self, content: str) -> str:
        content = content.replace(CUT, "")
        if self._control_pattern is None:
            return content
        return self._control_pattern.sub(
            lambda match: f"{match[0][:1]}{CUT}{match[0][1:]}", content
        )


def _load(path: Path, data: bytearray | None) -> tuple[Tokenizer, str]:
    """Return the tokenizer and the kind of its decoder."""
    try:
        if data is None:
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = Tokenizer.from_buffer(bytes(data))
        # Its own part alone: parsing the file a second time takes a sixth as long again.
        state = tokenizer.decoder.__getstate__() if tokenizer.decoder else b"{}"
        decoder: dict[str, Any] = json.loads(state)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise ModelError(
            f"the tokenizer {path} cannot be loaded: {error}",
            code="model_tokenizer",
            hint="build or fetch the model again",
        ) from error
    kind = decoder.get("type")
    if kind != "ByteLevel" and not (kind == "Sequence" and _falls_back_to_bytes(decoder)):
        raise ModelError(
            f"the tokenizer {path} is neither byte-level nor falls back to bytes",
            code="model_tokenizer",
            hint="take a model with such a tokenizer (Llama 3, Qwen, SmolLM, Gemma 3 ...)",
        )
    return tokenizer, str(kind)


def _falls_back_to_bytes(decoder: dict[str, Any]) -> bool:
    """Tell whether a token means the same everywhere: others drop the space of the first one."""
    parts = [dict(part) for part in decoder["decoders"]]
    spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return [part for part in parts if part["type"] != "Fuse"] == [spaces, {"type": "ByteFallback"}]


def _compile(chat_template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(chat_template)
    except TemplateError as error:
        raise ModelError(
            f"the model's chat template is broken: {error}",
            code="model_template",
            hint="build or fetch the model again",
        ) from error


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _byte_alphabet() -> dict[str, int]:
    """Return character -> byte of byte-level BPE.

    Printable bytes stand for themselves, the others are numbered from U+0100 on. Source: GPT-2,
    `bytes_to_unicode` in encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()
