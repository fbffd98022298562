"""The last rung of the ladder: what an operator wrote down, where nobody else answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from fleet_protocol.library import LibraryAnswer
from fleet_protocol.messages import JobSubmit

OfflineAnswers: TypeAlias = Callable[[JobSubmit], LibraryAnswer | None]
"""What the library says to a job, in the form that the job asks for; None: nothing. Pure for as
long as the operator does not edit the library."""

_OWN_FAULTS: Final = frozenset({"bad_output_format", "provider_bad_request", "provider_filtered"})
"""Where the job itself is at fault its author needs the failure, not an answer."""


def no_library(_submit: JobSubmit) -> LibraryAnswer | None:
    """Know nothing."""
    return None


def may_stand_in(code: str) -> bool:
    """Tell whether the library may answer a job that would fail with this code."""
    return code not in _OWN_FAULTS
