"""Who of those who look after a fleet may do what: one table, for requests over MQTT and over HTTP.

A role may do what is its own and what is any lower one's: `allowed` is all there is to ask. Over
MQTT the topic says the role, for the broker's access list binds it to the identity; over HTTP
whoever knows who is logged in says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias

from msgspec.structs import replace

from fleet_protocol.errors import RejectedError
from fleet_protocol.messages import AdminOp, AdminReply, JobView
from fleet_protocol.topics import Role

LADDER: Final = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)
"""Those who look after a fleet, the least of them first."""


class Action(StrEnum):
    """What may be done besides what is a request to the dispatcher (`AdminOp`).

    Attributes:
        WATCH: See figures, workers, events and alerts.
        READ_TEXTS: See what devices asked and what they were answered.
        ASK: Have a question answered, as a device does.
        ENROL: Give somebody an identity, a key or a login.
        REVOKE: Take it away.
        CHANGE_SETTINGS: Change what the fleet does by itself.
        READ_AUDIT: See who asked for what.
    """

    WATCH = "watch"
    READ_TEXTS = "texts.read"
    ASK = "ask"
    ENROL = "identities.enrol"
    REVOKE = "identities.revoke"
    CHANGE_SETTINGS = "settings.change"
    READ_AUDIT = "audit.read"


Deed: TypeAlias = Action | AdminOp

LEAST: Final[Mapping[Deed, Role]] = MappingProxyType(
    {
        Action.WATCH: Role.VIEWER,
        AdminOp.WORKERS_LIST: Role.VIEWER,
        AdminOp.WORKER_SHOW: Role.VIEWER,
        AdminOp.JOBS_LIST: Role.VIEWER,
        AdminOp.JOB_SHOW: Role.VIEWER,
        AdminOp.COSTS: Role.VIEWER,
        AdminOp.CACHE_STATS: Role.VIEWER,
        AdminOp.ALERTS_LIST: Role.VIEWER,
        Action.READ_TEXTS: Role.OPERATOR,
        Action.ASK: Role.OPERATOR,
        AdminOp.JOB_CANCEL: Role.OPERATOR,
        AdminOp.JOB_RETRY: Role.OPERATOR,
        AdminOp.WORKER_DRAIN: Role.OPERATOR,
        AdminOp.WORKER_RESUME: Role.OPERATOR,
        AdminOp.WORKER_RELOAD: Role.OPERATOR,
        AdminOp.CACHE_ASK_AGAIN: Role.OPERATOR,
        AdminOp.ALERT_ACK: Role.OPERATOR,
        AdminOp.JOB_PURGE: Role.ADMIN,
        AdminOp.CACHE_CLEAR: Role.ADMIN,
        AdminOp.CACHE_PREWARM: Role.ADMIN,
        Action.ENROL: Role.ADMIN,
        Action.REVOKE: Role.ADMIN,
        Action.CHANGE_SETTINGS: Role.ADMIN,
        Action.READ_AUDIT: Role.ADMIN,
    }
)
"""The least role that may do it."""

MEANINGS: Final[Mapping[Deed, str]] = MappingProxyType(
    {
        Action.WATCH: "see figures, workers, events and alerts",
        AdminOp.WORKERS_LIST: "list workers",
        AdminOp.WORKER_SHOW: "see one worker",
        AdminOp.JOBS_LIST: "list jobs, without texts",
        AdminOp.JOB_SHOW: "see one job",
        AdminOp.COSTS: "see what the cloud costs",
        AdminOp.CACHE_STATS: "see what is cached",
        AdminOp.ALERTS_LIST: "list alerts, those that are over too",
        Action.READ_TEXTS: "see prompts and answers",
        Action.ASK: "ask over HTTP, as a device does over MQTT",
        AdminOp.JOB_CANCEL: "cancel a job",
        AdminOp.JOB_RETRY: "let a dead letter start over",
        AdminOp.WORKER_DRAIN: "drain a worker",
        AdminOp.WORKER_RESUME: "resume a worker",
        AdminOp.WORKER_RELOAD: "have a worker load its model anew",
        AdminOp.CACHE_ASK_AGAIN: "have frequent questions asked ahead",
        AdminOp.ALERT_ACK: "say that one looks after an alert",
        AdminOp.JOB_PURGE: "purge a dead letter",
        AdminOp.CACHE_CLEAR: "clear the answer cache",
        AdminOp.CACHE_PREWARM: "put answers into the cache",
        Action.ENROL: "enrol identities, keys and logins",
        Action.REVOKE: "revoke them",
        Action.CHANGE_SETTINGS: "change settings",
        Action.READ_AUDIT: "read the audit log",
    }
)
"""For people: what each of them is."""

_RANKS: Final = {role: rank for rank, role in enumerate(LADDER)}


def allowed(role: Role, deed: Deed) -> bool:
    """Tell whether a role may do something; roles that look after nothing may do nothing here."""
    return role in _RANKS and _RANKS[role] >= _RANKS[_least(deed)]


def require(role: Role, deed: Deed) -> None:
    """Do nothing where a role may do something.

    Raises:
        RejectedError: `not_authorized`: it may not; the hint says who may.
    """
    if not allowed(role, deed):
        raise RejectedError(
            f"{deed.value} is not for the role {role.value}",
            code="not_authorized",
            hint=f"ask as {' or '.join(LADDER[_RANKS[_least(deed)] :])}",
        )


def _least(deed: Deed) -> Role:
    """What nobody put into the table is for admins."""
    return LEAST.get(deed, Role.ADMIN)


def as_seen_by(role: Role, reply: AdminReply) -> AdminReply:
    """Return a reply without the texts that a role may not read."""
    if not reply.jobs or allowed(role, Action.READ_TEXTS):
        return reply
    return replace(reply, jobs=tuple(_without_texts(job) for job in reply.jobs))


def _without_texts(job: JobView) -> JobView:
    if job.result is None:
        return job
    # A message of the offline library or of a refusal may quote what was asked.
    return replace(job, result=replace(job.result, text="", message="", offline=None))
