"""Conversations into prompt tokens, as a worker does it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from models.checkpoints.checkpoint import TextParts
from models.errors import CheckpointError

_PROBES: Final = (
    "Set zone 3 to 21.5 °C at 2026-11-21T06:30:00Z",
    "it's\n\n  two   spaces\tand a tab",
    "née 你好 🙂 Ω≈ç\u200d√ \x00 end",
)
_WORDS: Final = "three plain words"


def render_prompt(template: str, messages: Sequence[tuple[str, str]]) -> str:
    """Turn (role, content) pairs into the prompt, up to where the answer begins.

    The template comes with a checkpoint, so it is not trusted: it runs in Jinja's sandbox.

    Raises:
        CheckpointError: It is not a template, or refuses these messages.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=turns, add_generation_prompt=True)
    except TemplateError as error:
        raise CheckpointError(
            f"the chat template does not render: {error}", hint="fix it in the checkpoint"
        ) from error


def bind_first_token(template: str, token: str) -> str:
    """Return the template with `bos_token` set, if it writes one.

    Whoever renders it later need not know the token, and nothing else writes it.
    """
    if "bos_token" not in template:
        return template
    return f"{{% set bos_token = {json.dumps(token, ensure_ascii=False)} %}}{template}"


class PromptEncoder:
    """Turns questions into prompt tokens, and tokens into text."""

    def __init__(self, text: TextParts) -> None:
        self._template = text.chat_template
        self._tokenizer = Tokenizer.from_str(text.tokenizer_json)

    def encode(self, question: str) -> list[int]:
        """Return the prompt tokens of one user turn."""
        prompt = render_prompt(self._template, (("user", question),))
        return list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer, special tokens left out."""
        return str(self._tokenizer.decode(list(tokens)))


def check_text_parts(text: TextParts) -> None:
    """Prove that the tokenizer loses nothing and the template holds what it is given.

    Raises:
        CheckpointError: Text does not survive the round trip, or a stop token is a plain word.
    """
    tokenizer = Tokenizer.from_str(text.tokenizer_json)
    for probe in _PROBES:
        ids = tokenizer.encode(probe, add_special_tokens=False).ids
        if tokenizer.decode(ids, skip_special_tokens=False) != probe:
            raise CheckpointError(
                f"the tokenizer loses text: {probe!r} does not come back",
                hint="its pre-tokenizer or decoder is not the model's own",
            )
        if probe not in render_prompt(text.chat_template, (("user", probe),)):
            raise CheckpointError(
                "the chat template drops what the user says", hint="fix it in the checkpoint"
            )
    if not _decodes_in_parts(tokenizer):
        raise CheckpointError(
            "the tokenizer decodes a token otherwise at the beginning than later on",
            hint="take a model with a byte-level or byte-fallback BPE tokenizer without a prefix "
            "(Llama 3, Qwen, SmolLM, Gemma)",
        )
    for stop in text.stop_tokens:
        if tokenizer.id_to_token(stop) is None:
            raise CheckpointError(
                f"stop token {stop} is not in the vocabulary", hint="fetch the checkpoint again"
            )


def _decodes_in_parts(tokenizer: Tokenizer) -> bool:
    """Tell whether an answer can be told token by token: some decoders drop the first space."""
    ids = tokenizer.encode(_WORDS, add_special_tokens=False).ids
    return all(
        tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:]) == _WORDS
        for cut in range(len(ids))
    )
