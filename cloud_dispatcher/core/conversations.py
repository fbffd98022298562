"""Which board answered a conversation last: it still has in memory what was said so far.

A board keeps the beginnings of prompts. A follow-up, which repeats the whole conversation, costs
only its new tokens there, and all of them anywhere else.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import msgspec

from fleet_protocol.messages import ChatRole, JobSubmit, WorkerId


class ConversationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a conversation stays with its board.

    Attributes:
        most: Conversations remembered; 0: follow-ups go to any board.
        ttl_ms: Span after an answer within which a follow-up prefers the board that gave it.
    """

    most: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1_000
    ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=86_400_000)] = 900_000


class Conversations:
    """Boards by the hash of what they answered; no text is kept.

    A follow-up is known by its words alone: up to its last answer it is what was asked before. A
    hash that two conversations share would cost some tokens, nothing else.
    """

    def __init__(self, settings: ConversationSettings) -> None:
        self._settings = settings
        # From the one that was answered first on.
        self._boards: OrderedDict[int, tuple[WorkerId, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._boards)

    def answered(self, submit: JobSubmit, worker: WorkerId, now_ms: int) -> None:
        """Remember who answered."""
        told = hash(submit.conversation)
        self._boards.pop(told, None)
        self._boards[told] = (worker, now_ms)
        if len(self._boards) > self._settings.most:
            self._boards.popitem(last=False)

    def board_of(self, submit: JobSubmit, now_ms: int) -> WorkerId | None:
        """Return who answered what this follows up; None: it follows nothing that is known."""
        if submit.messages is None or not self._boards:
            return None
        turns = submit.messages
        answers = [i for i, turn in enumerate(turns) if turn.role is ChatRole.ASSISTANT]
        last = answers[-1] if answers else 0
        told = hash(turns[:last])
        found = self._boards.get(told)
        if found is None:
            return None
        if now_ms - found[1] > self._settings.ttl_ms:
            del self._boards[told]
            return None
        return found[0]
