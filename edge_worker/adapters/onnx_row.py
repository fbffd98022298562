"""One request on its way through the ONNX engine: its prompt, its answer so far, its guesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edge_worker.adapters.calculations import Held
from edge_worker.core.sampling import (
    Choice,
    Float32Array,
    Int64Array,
    choose_token,
    log_probability,
)
from edge_worker.core.speculation import DraftPace, PromptLookup
from edge_worker.core.stopping import AnswerText, StopRule
from edge_worker.ports import Finished, GenerationRequest
from fleet_protocol.confidence import KIND_CHARS


class Row:
    """A request, from its arrival to its end.

    Attributes:
        held_tokens: Positions of its row that are written and valid.
        cached_tokens: Of those, how many came from kept blocks.
        passed_over: Chunks of others read since its own last one.
        next_token: Chosen, but not read by the model yet.
        reserved_tokens: Most tokens it may come to hold.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        stop_tokens: Sequence[int],
        held: Held,
        draft_tokens: int,
    ) -> None:
        """Begin.

        Args:
            request: What is asked.
            stop_tokens: Of the model.
            held: What holds the answer.
            draft_tokens: Most tokens to guess at once; 0: none.
        """
        wanted = request.generation
        self.request = request
        self.prompt: Int64Array = np.array(request.prompt_tokens, np.int64)
        self.held_tokens = 0
        self.cached_tokens = 0
        self.passed_over = 0
        self.next_token = 0
        self.answer = AnswerText(
            StopRule(
                tokens=frozenset(stop_tokens),
                texts=wanted.stop,
                max_tokens=wanted.max_tokens,
                spare_tokens=held.spare_tokens,
            ),
            calculations=held.hides,
        )
        self.reserved_tokens = len(self.prompt) + wanted.max_tokens + held.spare_tokens
        # Of its own for each request: what it draws does not depend on its neighbours.
        self._generator = np.random.default_rng(wanted.seed) if wanted.temperature > 0 else None
        self._guide = held.guide
        self._said: list[int] = []
        self._logprobs: list[float] = []
        self._trust = request.trust
        self._surprise = self._worst = 0.0
        self._begun = ""
        self._gave_up = False
        self._lookup: PromptLookup | None = None
        self._pace = DraftPace(most_tokens=draft_tokens) if draft_tokens else None
        self._is_guess = False

    @property
    def left_tokens(self) -> int:
        """Prompt tokens still to read."""
        return len(self.prompt) - self.held_tokens

    def take(self, logits: Float32Array, piece_of: Callable[[int], bytes]) -> str:
        """Choose the next token from logits [vocab]; return the text that may be shown now.

        Raises:
            ValueError: The logits are not numbers.
            RejectedError: The answer cannot be held to its form.
        """
        token = self._choose(logits)
        self.next_token = token
        self._said.append(token)
        if self._lookup is not None:
            self._lookup.add(token)
        text = self.answer.take(token, piece_of(token))
        if self.answer.finish is None and self._guide is not None and self._guide.is_complete:
            text += self.answer.end()
        if self.answer.finish is None and self._is_lost():
            self._gave_up = True
            text += self.answer.end()
        return text

    def _is_lost(self) -> bool:
        if self._trust is None:
            return False
        if len(self._begun) < KIND_CHARS:
            self._begun = self.answer.text.lstrip()[:KIND_CHARS]
        most, begun = self.answer.most_tokens, self._begun
        return self._trust.is_lost(self._surprise, self._worst, most_tokens=most, begun=begun)

    def _note(self, logprob: float) -> None:
        self._logprobs.append(logprob)
        self._surprise -= logprob
        self._worst = max(self._worst, -logprob)

    def _choose(self, logits: Float32Array) -> int:
        """Return the next token; note its probability where there was something to choose."""
        guide = self._guide
        if guide is None or guide.is_free:
            token, logprob = self._draw(logits)
            self._note(logprob)
        else:
            is_forced = bool(guide.forced())
            allowed = logits.copy()
            guide.allow(allowed)
            token, _ = self._draw(allowed)
            # Among what is allowed even a token the model finds absurd may be certain. Confidence
            # is to say what the model thinks, so it keeps the probability it had among all. Of what
            # is forced the model thinks nothing: it was not asked.
            if not is_forced:
                self._note(log_probability(logits, token))
        if guide is not None:
            guide.accept(token)
        return token

    def _draw(self, logits: Float32Array) -> Choice:
        wanted = self.request.generation
        return choose_token(
            logits,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            generator=self._generator,
        )

    def draft(self, limit: int) -> tuple[int, ...]:
        """Return up to `limit` tokens that may follow the next one.

        First what the form of the answer leaves no choice about, else what followed the same
        tokens before.
        """
        limit = min(limit, self.answer.left_tokens - 1)
        if self._pace is None or limit < 1:
            return ()
        forced = self._guide.forced() if self._guide is not None else ()
        self._is_guess = not forced
        if forced:
            return tuple(forced[:limit])
        limit = min(limit, self._pace.length)
        guess = self._look_up(limit) if limit else ()
        if guess and self._guide is not None:
            guess = guess[: self._guide.allowed_prefix(guess)]
        if not guess:
            self._pace.pass_token()
        return guess

    def record_draft(self, drafted: int, *, accepted: int) -> None:
        """Learn from how many of the drafted tokens came to be chosen."""
        if self._pace is not None and self._is_guess and drafted:
            self._pace.record(drafted=drafted, accepted=accepted)

    def finished(self) -> Finished:
        """Return the end of an answer that has one."""
        finish = self.answer.finish
        if finish is None:
            raise AssertionError("an answer without an end cannot be finished")
        return Finished(
            id=self.request.id,
            text=self.answer.text,
            finish=finish,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            tokens=self.answer.tokens,
            logprobs=tuple(self._logprobs),
            gave_up=self._gave_up,
            fits_output=self._guide is None or self._guide.is_complete or self._guide.may_end,
        )

    def _look_up(self, limit: int) -> tuple[int, ...]:
        if self._lookup is None:
            # Only now: most answers among others never need it.
            self._lookup = PromptLookup((*self.request.prompt_tokens, *self._said))
        return self._lookup.draft(limit)
