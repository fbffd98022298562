"""A wire that can be cut, and worse: a TCP relay on loopback that knows MQTT's packets."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Self

PATIENCE_S = 10.0
_CHUNK = 65_536
_PUBLISH, _QOS, _QOS_1, _DUP = 0x30, 0x06, 0x02, 0x08
_PUBACK = b"\x40\x02"


class Packets:
    """Cuts a stream into MQTT packets."""

    def __init__(self) -> None:
        self._rest = b""

    def cut(self, data: bytes) -> list[bytes]:
        """Return the packets that are whole now."""
        found, data = list[bytes](), self._rest + data
        while (size := _size_of(data)) is not None and size <= len(data):
            found.append(data[:size])
            data = data[size:]
        self._rest = data
        return found


def _size_of(data: bytes) -> int | None:
    """Return the length of the first packet, header included; None: too little is here."""
    length = 0
    for at in range(1, min(5, len(data))):
        length |= (data[at] & 0x7F) << 7 * (at - 1)
        if data[at] < 0x80:
            return at + 1 + length
    return None


class Link:
    """Relays `port` to `target`, in a thread of its own. Give orders from any other.

    Attributes:
        connections: How many there were.
        doubled, moved: Packets that were sent twice, or out of their turn.
        lost: Publications that were taken and not passed on, by the end of their topics.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.connections = self.doubled = self.moved = 0
        self.lost: Counter[str] = Counter()
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._rng = random.Random(1)
        self._wires: set[_Wire] = set()
        self.is_over = asyncio.Event()
        self._whole()

    def _whole(self) -> None:
        self.is_cut = self.is_twice = self.is_shuffled = False
        self._to_lose: Counter[str] = Counter()
        self.delay_s, self.bytes_per_s = 0.0, 0.0
        self.flows = {True: asyncio.Event(), False: asyncio.Event()}
        for flows in self.flows.values():
            flows.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._carry, "127.0.0.1", 0), self._loop
        ).result(PATIENCE_S)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._obey(self._server.close)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    # ------------------------------------------------------------ orders

    def cut(self) -> None:
        """Break every connection and let no new one through."""
        self._obey(self._cut)

    def strand(self) -> None:
        """Let the far ends of all connections be gone without a word; new ones come through."""
        self._obey(lambda: [wire.strand() for wire in self._wires])

    def stall(self, *, up: bool = True, down: bool = True) -> None:
        """Take nothing more from who dials (`up`), from whom they dial (`down`): buffers fill."""
        for is_up, wanted in ((True, up), (False, down)):
            if wanted:
                self._obey(self.flows[is_up].clear)

    def slow_down(self, *, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """Let everything come later, and no more than so many bytes a second and direction."""
        self.delay_s, self.bytes_per_s = delay_s, bytes_per_s

    def stutter(self) -> None:
        """Let each QoS 1 publication arrive twice, as it may after a reconnect."""
        self.is_twice = True

    def shuffle(self) -> None:
        """Let publications overtake each other within what is read at once."""
        self.is_shuffled = True

    def lose(self, *ends: str, times: int) -> None:
        """Confirm so many QoS 1 publications to each such end of a topic, and pass none on."""
        self._to_lose += Counter(dict.fromkeys(ends, times))

    def restore(self) -> None:
        """Be a good wire again. What is stranded stays so."""

        def restore() -> None:
            before = self.flows
            self._whole()
            for flows in before.values():
                flows.set()

        self._obey(restore)

    # ------------------------------------------------------------ in the thread

    def _obey(self, order: Callable[[], object]) -> None:
        obeyed = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (order(), obeyed.set()))
        assert obeyed.wait(PATIENCE_S)

    def _cut(self) -> None:
        self.is_cut = True
        for wire in list(self._wires):
            wire.cut()

    async def _end(self) -> None:
        self._cut()
        for event in (self.is_over, *self.flows.values()):
            event.set()
        mine = asyncio.current_task()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not mine))

    async def _carry(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        if self.is_cut:
            back.transport.abort()
            return
        try:
            far, forth = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            back.transport.abort()
            return
        self.connections += 1
        wire = _Wire(self, back, forth)
        self._wires.add(wire)
        try:
            await asyncio.gather(
                wire.pump(near, forth, back, is_up=True), wire.pump(far, back, forth, is_up=False)
            )
        finally:
            wire.cut()
            self._wires.discard(wire)

    def doctor(self, packets: list[bytes], confirm: Callable[[bytes], None]) -> list[bytes]:
        """Return what is sent on in place of these packets; `confirm` answers their sender."""
        if self._to_lose:
            packets = [packet for packet in packets if not self._loses(packet, confirm)]
        if self.is_shuffled:
            places = [at for at, packet in enumerate(packets) if packet[0] & 0xF0 == _PUBLISH]
            order = self._rng.sample(places, len(places))
            self.moved += sum(a != b for a, b in zip(places, order, strict=True))
            taken = {at: packets[place] for at, place in zip(places, order, strict=True)}
            packets = [taken.get(at, packet) for at, packet in enumerate(packets)]
        if self.is_twice:
            packets = [one for packet in packets for one in self._twice(packet)]
        return packets

    def _loses(self, packet: bytes, confirm: Callable[[bytes], None]) -> bool:
        if packet[0] & 0xF0 != _PUBLISH or packet[0] & _QOS != _QOS_1:
            return False
        at = next(at for at in range(1, 5) if packet[at] < 0x80) + 1
        topic_end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
        end = packet[at + 2 : topic_end].decode().rpartition("/")[2]
        if self.lost[end] >= self._to_lose[end]:
            return False
        self.lost[end] += 1
        confirm(_PUBACK + packet[topic_end : topic_end + 2])
        return True

    def _twice(self, packet: bytes) -> list[bytes]:
        if packet[0] & 0xF0 != _PUBLISH or packet[0] & _QOS != _QOS_1:
            return [packet]
        self.doubled += 1
        return [packet, bytes((packet[0] | _DUP,)) + packet[1:]]


class _Wire:
    """One connection."""

    def __init__(self, link: Link, *ends: asyncio.StreamWriter) -> None:
        self._link = link
        self._ends = ends
        self._is_stranded = False

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()

    def strand(self) -> None:
        self._is_stranded = True

    async def pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        sender: asyncio.StreamWriter,
        *,
        is_up: bool,
    ) -> None:
        link, packets = self._link, Packets()
        try:
            while data := await source.read(_CHUNK):
                await link.flows[is_up].wait()
                if link.delay_s or link.bytes_per_s:
                    span_s = len(data) / link.bytes_per_s if link.bytes_per_s else 0.0
                    await asyncio.sleep(link.delay_s + span_s)
                whole = b"".join(link.doctor(packets.cut(data), sender.write))
                if whole and not self._is_stranded:
                    sink.write(whole)
                    await sink.drain()
        except OSError:
            pass
        if self._is_stranded:
            # The end that went away is not told of this one's end either.
            await link.is_over.wait()
        self.cut()
