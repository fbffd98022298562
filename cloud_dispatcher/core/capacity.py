"""Whether the fleet's boards can answer a job at all, by what the dispatcher can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fleet_protocol.messages import JobSubmit
from fleet_protocol.routing import Route, RoutePolicy, RouteQuery, decide, least_prompt_tokens

_UNBOUNDED_TOKENS: Final = 2**62


def is_known_model(submit: JobSubmit, contexts: Mapping[str | None, int]) -> bool:
    """Tell whether any worker has the named model; before any worker is known, all may."""
    return submit.model is None or not contexts or submit.model in contexts


def route_of(submit: JobSubmit, contexts: Mapping[str | None, int]) -> Route:
    """Ask the routing rule about the roomiest board, with a lower bound for the prompt.

    Args:
        submit: What the device asks.
        contexts: See `Fleet.contexts`. Before any worker is known nothing is too long.
    """
    query = RouteQuery(
        prompt_tokens=least_prompt_tokens(submit.prompt_chars),
        max_tokens=submit.max_tokens,
        escalate=submit.escalate,
        privacy=submit.privacy,
        supported=is_known_model(submit, contexts),
    )
    most = contexts.get(submit.model, contexts.get(None, _UNBOUNDED_TOKENS))
    return decide(query, RoutePolicy(context_tokens=most))


def fits_edge(submit: JobSubmit, contexts: Mapping[str | None, int]) -> bool:
    """Tell whether some board could answer if the cloud did not exist."""
    most = contexts.get(submit.model, contexts.get(None, _UNBOUNDED_TOKENS))
    needed = least_prompt_tokens(submit.prompt_chars) + submit.max_tokens
    return needed <= most and is_known_model(submit, contexts)
