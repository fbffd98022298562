"""Jobs that wait for a slot, best first, apart by what they need of a worker."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, KeysView
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from cloud_dispatcher.core.job import Job
from cloud_dispatcher.core.turns import Ranked, Turns
from fleet_protocol.messages import DeviceId, JobKey
from fleet_protocol.routing import least_prompt_tokens

_PRIORITIES: Final = 10
_SMALL_TOKENS: Final = 256
_RISE_MOST: Final = 200
"""Flows that are counted a level up at once; the rest are due as soon as somebody looks again."""

_Rank: TypeAlias = tuple[Any, ...]


class Need(NamedTuple):
    """What a job asks of a worker.

    Attributes:
        model: Name of the model it must have; None: any.
        tokens: Least context, rounded down to a power of two so that there are few kinds of need;
            the exact count is the worker's to make. 0 for all that is small.
        work: Class of the work by which a policy ranks workers; 0: it does not look at it.
        label: What else the worker must have; None: nothing.
    """

    model: str | None
    tokens: int
    work: int = 0
    label: str | None = None


def need_of(job: Job) -> Need:
    """Return what a job asks of a worker."""
    submit = job.submit
    tokens = least_prompt_tokens(submit.prompt_chars) + submit.max_tokens
    least = 0 if tokens < 2 * _SMALL_TOKENS else 1 << tokens.bit_length() - 1
    return Need(submit.model, least, label=submit.label)


class _FlowName(NamedTuple):
    need: Need
    tenant: str
    device: DeviceId
    priority: int


class _Flow:
    """Ready jobs of one device that have a priority and a need in common, most urgent first.

    Attributes:
        since_ms: When the one that is first now came to be, or was last counted a level up.
        level: Its priority, and one more for each time that it waited for so long.
        turn: The device's turn among those of its tenant.
    """

    __slots__ = ("jobs", "level", "name", "since_ms", "turn")

    def __init__(self, name: _FlowName) -> None:
        self.name = name
        self.jobs: Ranked[JobKey] = Ranked()
        self.level = name.priority
        self.since_ms = 0
        self.turn = 0


class _Lone(NamedTuple):
    """The only ready job. While boards are free there is no other: it is spared the lines.

    Attributes:
        since_ms: When it came.
    """

    job: Job
    tenant: str
    since_ms: int


class _Level:
    """The flows of a lane that count as equally important: tenants take turns, then devices do."""

    def __init__(self) -> None:
        self.tenants: Ranked[str] = Ranked()
        self._flows: dict[str, Ranked[_Flow]] = {}

    def file(self, flow: _Flow, turns: Turns) -> None:
        """Let a flow be here, its first job being what it is now."""
        tenant = flow.name.tenant
        flows = self._flows.get(tenant)
        if flows is None:
            flows = self._flows[tenant] = Ranked()
            self.tenants.put(tenant, (turns.turn(tenant), tenant))
        flows.put(flow, (flow.turn, *flow.jobs.first()[0]))

    def strike(self, flow: _Flow) -> None:
        """Let a flow not be here."""
        tenant = flow.name.tenant
        flows = self._flows[tenant]
        flows.discard(flow)
        if not flows:
            del self._flows[tenant]
            self.tenants.discard(tenant)

    def served(self, tenant: str, turns: Turns) -> None:
        """Let a tenant that had a turn wait for its next one."""
        if tenant in self.tenants:
            self.tenants.put(tenant, (turns.turn(tenant), tenant))

    def first(self) -> tuple[_Rank, JobKey]:
        """Return the rank, among all lanes, of the best job, and the job."""
        (turn, _), tenant = self.tenants.first()
        rank, _ = self._flows[tenant].first()
        return (turn, *rank), rank[-1]


class JobQueue:
    """Waiting jobs by priority (9 first); among equals tenants take turns, and their devices do.

    Of devices with equal turns, and of a device's own jobs, the one with the nearest limit comes
    first, then the one received first. A device's first job counts a priority higher each time that
    it has waited for so long, up to 9: so nobody waits for ever, and who submits much gains nothing
    by it, for only the first one ages.

    Jobs with different needs wait in lanes of their own, so that one that fits no free worker
    never blocks another that does. A job whose pause is not over is counted but not ready.

    Args:
        ageing_ms: So long a device's first job waits until it counts a priority higher.
    """

    def __init__(self, ageing_ms: int = 30_000) -> None:
        self._ageing_ms = ageing_ms
        self._lanes: dict[Need, dict[int, _Level]] = {}
        # By the label that they need.
        self._labels: dict[str | None, dict[Need, None]] = {}
        self._flows: dict[_FlowName, _Flow] = {}
        # By `since_ms`, oldest first; those that cannot rise are not in it.
        self._rising: OrderedDict[_Flow, None] = OrderedDict()
        self._tenants = Turns()
        self._devices: dict[str, Turns] = {}
        # Without a flow: the lone one.
        self._ready: dict[JobKey, _Flow | None] = {}
        self._lone: _Lone | None = None
        self._pausing: dict[JobKey, int] = {}
        # By the order in which they came to wait; a dict, for any may leave at any time.
        self._by_priority: list[dict[JobKey, None]] = [{} for _ in range(_PRIORITIES)]

    def __len__(self) -> int:
        return len(self._ready) + len(self._pausing)

    def __contains__(self, key: JobKey) -> bool:
        return key in self._ready or key in self._pausing

    @property
    def has_ready(self) -> bool:
        """Whether any job could be given out now."""
        return bool(self._ready)

    def add(self, job: Job, *, now_ms: int, tenant: str = "") -> None:
        """Let a job wait; one that waits already is filed anew."""
        self.remove(job.key)
        priority = job.submit.priority
        self._by_priority[priority][job.key] = None
        if job.not_before_ms > now_ms:
            self._pausing[job.key] = priority
            return
        if not self._ready:
            self._lone = _Lone(job, tenant, now_ms)
            self._ready[job.key] = None
            return
        self._join_others()
        self._line_up(job, tenant, now_ms)

    def remove(self, key: JobKey) -> None:
        """Let a job no longer wait. Unknown ones are ignored."""
        if key in self._ready:
            flow = self._leave(key)
            if flow is not None and flow.jobs:
                self._refile(flow)
            elif flow is not None:
                self._end(flow)
            return
        priority = self._pausing.pop(key, None)
        if priority is not None:
            del self._by_priority[priority][key]

    def take(self, key: JobKey, *, now_ms: int) -> None:
        """Let a job no longer wait because a worker has it: its device had a turn."""
        if key not in self._ready:
            self.remove(key)
            return
        lone = self._lone
        flow = self._leave(key)
        if lone is not None:
            self._took(lone.tenant, lone.job.device)
        elif flow is not None:
            name = flow.name
            level = self._lanes[name.need][flow.level]
            self._took(name.tenant, name.device)
            if flow.jobs:
                self._strike(flow)
                self._begin(flow, now_ms)
            else:
                self._end(flow)
            level.served(name.tenant, self._tenants)

    def ahead_of(self, priority: int) -> int:
        """Return how many wait with this priority or a higher one."""
        return sum(map(len, self._by_priority[priority:]))

    def least(self, *, below: int) -> JobKey | None:
        """Return who is missed least below a priority: of the lowest ones the last that came."""
        for waiting in self._by_priority[:below]:
            if waiting:
                return next(reversed(waiting))
        return None

    def ready(self) -> Iterator[JobKey]:
        """Yield the jobs that could be given out now, more important ones first, as they came."""
        for waiting in reversed(self._by_priority):
            yield from (key for key in waiting if key in self._ready)

    def age(self, now_ms: int) -> None:
        """Let those count a priority higher that have waited for long enough."""
        if self._lone is not None:
            if now_ms - self._lone.since_ms < self._ageing_ms:
                return
            self._join_others()
        for _ in range(min(len(self._rising), _RISE_MOST)):
            flow = next(iter(self._rising))
            if now_ms - flow.since_ms < self._ageing_ms:
                return
            self._strike(flow)
            flow.level += 1
            flow.since_ms = now_ms
            self._file(flow)

    def heads(self, labels: KeysView[str] | None = None) -> Iterator[tuple[Need, JobKey]]:
        """Yield the best ready job of each lane, the best of all first.

        Args:
            labels: Of lanes that need a label, those that need one of these; None: all lanes.
        """
        if self._lone is not None:
            yield need_of(self._lone.job), self._lone.job.key
            return
        kinds = self._labels.keys() if labels is None else (None, *(self._labels.keys() & labels))
        needs = (need for kind in kinds for need in self._labels.get(kind, ()))
        tops = [(*self._first(self._lanes[need]), need) for need in needs]
        for _, key, need in sorted(tops, key=itemgetter(0)) if len(tops) > 1 else tops:
            yield need, key

    @staticmethod
    def _first(lane: dict[int, _Level]) -> tuple[_Rank, JobKey]:
        level = max(lane)
        rank, key = lane[level].first()
        return (-level, *rank), key

    def _join_others(self) -> None:
        """Let the lone job line up, as it would have when it came."""
        lone, self._lone = self._lone, None
        if lone is not None:
            self._line_up(lone.job, lone.tenant, lone.since_ms)

    def _line_up(self, job: Job, tenant: str, now_ms: int) -> None:
        """Let a ready job wait among others."""
        name = _FlowName(need_of(job), tenant, job.device, job.submit.priority)
        flow = self._flows.get(name)
        if flow is not None:
            self._ready[job.key] = flow
            flow.jobs.put(job.key, _urgency(job))
            if flow.jobs.first()[1] == job.key:
                self._refile(flow)
            return
        flow = self._flows[name] = self._ready[job.key] = _Flow(name)
        flow.jobs.put(job.key, _urgency(job))
        self._tenants.enter(tenant)
        self._turns_of(tenant).enter(job.device)
        self._begin(flow, now_ms)

    def _leave(self, key: JobKey) -> _Flow | None:
        """Let a ready job be in none of the books but its flow's; None: it was the lone one."""
        flow = self._ready.pop(key)
        if flow is None:
            if self._lone is not None:
                del self._by_priority[self._lone.job.submit.priority][key]
            self._lone = None
        else:
            del self._by_priority[flow.name.priority][key]
            flow.jobs.discard(key)
        return flow

    def _took(self, tenant: str, device: DeviceId) -> None:
        self._tenants.took(tenant)
        self._turns_of(tenant).took(device)

    def _turns_of(self, tenant: str) -> Turns:
        turns = self._devices.get(tenant)
        if turns is None:
            turns = self._devices[tenant] = Turns()
        return turns

    def _begin(self, flow: _Flow, now_ms: int) -> None:
        """Let the wait of a flow's first job begin."""
        flow.level, flow.since_ms = flow.name.priority, now_ms
        flow.turn = self._devices[flow.name.tenant].turn(flow.name.device)
        self._file(flow)

    def _end(self, flow: _Flow) -> None:
        """Let a flow be gone that has no job left."""
        name = flow.name
        self._strike(flow)
        del self._flows[name]
        self._tenants.leave(name.tenant)
        self._devices[name.tenant].leave(name.device)

    def _file(self, flow: _Flow) -> None:
        need = flow.name.need
        lane = self._lanes.get(need)
        if lane is None:
            lane = self._lanes[need] = {}
            self._labels.setdefault(need.label, {})[need] = None
        level = lane.get(flow.level)
        if level is None:
            level = lane[flow.level] = _Level()
        level.file(flow, self._tenants)
        if flow.level < _PRIORITIES - 1:
            self._rising[flow] = None

    def _refile(self, flow: _Flow) -> None:
        """File a flow whose first job may be another one now."""
        self._lanes[flow.name.need][flow.level].file(flow, self._tenants)

    def _strike(self, flow: _Flow) -> None:
        need = flow.name.need
        lane = self._lanes[need]
        level = lane[flow.level]
        level.strike(flow)
        if not level.tenants:
            del lane[flow.level]
            if not lane:
                del self._lanes[need]
                del self._labels[need.label][need]
                if not self._labels[need.label]:
                    del self._labels[need.label]
        self._rising.pop(flow, None)


def _urgency(job: Job) -> _Rank:
    return (job.presses_at_ms, job.received_at_ms, job.key)
