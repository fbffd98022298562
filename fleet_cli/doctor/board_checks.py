"""What a board's facts mean for a worker; nothing is read here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fleet_cli.doctor.board_facts import BoardFacts, DiskFacts, LinkFacts, Validity
from fleet_cli.doctor.finding import Finding, fault, good, note

_DOT: Final = {"asimddp", "i8mm", "avx2", "avx512_vnni", "avx_vnni"}
"""Any of them multiplies 8-bit numbers by the dozen (`fleet_protocol.manifest.CpuClass`)."""
_BITS_64: Final = {"aarch64", "arm64", "x86_64", "AMD64"}
_BROKEN_RUNTIMES: Final = {"1.21.0"}
"""Of onnxruntime, on ARMv8.0 (Raspberry Pi 4): illegal instruction at import, its issue 23957."""
_JOBS_MB: Final = 120
"""What running jobs and kept beginnings take by default, beside the model."""
_SYSTEM_MB: Final = 300
_DISK_LOW_MB: Final = 500
_HOT_C: Final = 80.0
_WORN_TENTHS: Final = 9
_OVER_TENTHS: Final = 11
_MUCH_MB_H: Final = 500.0
_JUDGED_AFTER_S: Final = 3_600.0
_LAST_THIRD: Final = 3
_POWER: Final = (
    "use the maker's power supply (Pi 5: 5 V 5 A, Pi 4: 5 V 3 A) and a short, thick cable"
)
_COOL: Final = "cool it: a heat sink with a fan, and air around it"
_THROTTLES: Final = (
    ("the voltage is too low", _POWER),
    ("the clock is capped", _COOL),
    ("it is throttled", _COOL),
    ("it is at its soft limit of temperature", _COOL),
)


def check_board(facts: BoardFacts) -> list[Finding]:
    """Judge a board."""
    return [
        *_processor(facts),
        *_memory(facts),
        *_heat(facts),
        *(finding for disk in facts.disks for finding in _wear(disk, uptime_s=facts.uptime_s)),
        *_room(facts),
        check_clock(is_synced=facts.is_clock_synced),
        *_control(facts),
        *_certificate(facts),
        *_way(facts.broker),
    ]


def _processor(facts: BoardFacts) -> Iterator[Finding]:
    name = "processor"
    if facts.machine not in _BITS_64:
        yield fault(name, f"a system of 32 bits ({facts.machine})", "write the image of 64 bits")
        return
    if facts.engine != "onnx":
        yield good(name, f"{facts.machine}; the worker repeats prompts")
        return
    runtime = facts.onnxruntime
    if runtime is None:
        yield fault(name, "onnxruntime is not installed", "pip install 'edgefleet[edge]'")
        return
    has_dot = bool(_DOT & facts.features)
    if runtime in _BROKEN_RUNTIMES and facts.machine == "aarch64" and not has_dot:
        yield fault(
            name,
            f"onnxruntime {runtime} has instructions that this processor has not",
            "pip install 'onnxruntime>=1.23'",
        )
    elif not has_dot:
        yield note(
            name,
            f"onnxruntime {runtime}; no dot products of 8-bit numbers: slow",
            "nothing needs to be done: the worker takes the graph that suits it; a Raspberry Pi 5 "
            "or a Jetson Orin has them",
        )
    else:
        yield good(name, f"{facts.machine}, onnxruntime {runtime}, dot products of 8-bit numbers")


def _memory(facts: BoardFacts) -> Iterator[Finding]:
    name = "memory"
    if facts.model_mb is None or facts.engine != "onnx":
        yield good(name, f"{facts.memory_mb} MB, {facts.available_mb} MB available")
        return
    needs_mb = facts.model_mb + _JOBS_MB
    has = f"model and jobs take {needs_mb} MB"
    if needs_mb + _SYSTEM_MB > facts.memory_mb:
        yield fault(
            name,
            f"{has} of {facts.memory_mb} MB, and the system some {_SYSTEM_MB}",
            "take a smaller model, or a board with more memory",
        )
    elif facts.limit_mb is not None and needs_mb > facts.limit_mb:
        yield fault(
            name,
            f"{has}, and its unit allows {facts.limit_mb} MB",
            f"set worker_memory_mb to {needs_mb} or more and run playbooks/site.yml",
        )
    else:
        yield good(name, f"{has} of {facts.memory_mb} MB, {facts.available_mb} MB available")


def _heat(facts: BoardFacts) -> Iterator[Finding]:
    word = facts.throttled or 0
    for bit, (what, fix) in enumerate(_THROTTLES):
        if word >> bit & 1:
            yield note("throttling", f"now: {what}", fix)
        elif word >> (bit + 16) & 1:
            yield note("throttling", f"since it was switched on: {what}", fix)
    if not word and facts.throttled is not None:
        yield good("throttling", "never since it was switched on")
    if facts.temp_c is not None:
        heat = f"{facts.temp_c:.0f} C"
        is_hot = facts.temp_c >= _HOT_C
        yield note("temperature", heat, _COOL) if is_hot else good("temperature", heat)


def _wear(disk: DiskFacts, *, uptime_s: float) -> Iterator[Finding]:
    name = f"disk {disk.name}"
    worst = max(disk.life_time, default=0)
    if worst >= _OVER_TENTHS or disk.pre_eol == 3:
        yield fault(name, "it is worn out", "copy what matters and replace it now")
    elif worst >= _WORN_TENTHS or disk.pre_eol == 2:
        yield note(name, f"{(worst - 1) * 10} to {worst * 10} % worn", "have another one ready")
    elif worst:
        yield good(name, f"{(worst - 1) * 10} to {worst * 10} % worn")
    elif disk.kind == "SD":
        yield good(name, "an SD card, which does not say how worn it is")
    if uptime_s < _JUDGED_AFTER_S:
        return
    mb_h = disk.written_bytes / 1_000_000 / (uptime_s / 3_600)
    if mb_h > _MUCH_MB_H:
        yield note(
            f"{name} writes",
            f"{mb_h:.0f} MB an hour since the system started",
            "see who writes: sudo iotop -ao, journalctl --disk-usage; docs/doctor.md says what "
            "a worker writes",
        )
    else:
        yield good(f"{name} writes", f"{mb_h:.1f} MB an hour since the system started")


def _room(facts: BoardFacts) -> Iterator[Finding]:
    name = "data folder"
    if facts.is_read_only:
        yield fault(
            name,
            f"{facts.data} cannot be written: its file system is read-only",
            "see why: sudo dmesg | grep -i -e ext4 -e mmc; a worn card does that: write a new one",
        )
    elif facts.data_free_mb is None:
        yield fault(name, f"{facts.data} is not there", "run playbooks/site.yml again")
    elif facts.data_free_mb < _DISK_LOW_MB:
        yield fault(
            name,
            f"{facts.data_free_mb} MB free",
            "free some: sudo journalctl --vacuum-size=32M, sudo apt clean, versions below "
            "/opt/edgefleet that are not in use",
        )
    else:
        yield good(name, f"{facts.data}, {facts.data_free_mb} MB free")


def check_clock(*, is_synced: bool | None) -> Finding:
    """Judge whether somebody keeps the clock right: certificates hold by it."""
    if is_synced is None:
        return good("clock", "this system does not say whether it is kept right")
    if is_synced:
        return good("clock", "kept right")
    return note(
        "clock",
        "nobody keeps it right, and certificates are judged by it",
        "sudo systemctl enable --now systemd-timesyncd; is its server in reach? timedatectl "
        "timesync-status",
    )


def _control(facts: BoardFacts) -> Iterator[Finding]:
    if "memory" in facts.controllers:
        yield good("memory limits", "in force")
        return
    fix = "the kernel has no memory controller: MemoryMax= of the units means nothing"
    if "Raspberry Pi" in facts.board:
        fix = "add cgroup_enable=memory to the one line of /boot/firmware/cmdline.txt and restart"
    yield note("memory limits", "the memory controller is off: MemoryMax= means nothing", fix)


def _certificate(facts: BoardFacts) -> Iterator[Finding]:
    name = "certificate"
    again = (
        f"on the cloud host: fleet enroll worker {facts.worker} --token --again; fleet pki broker "
        "... --reload; then edge-worker join here"
    )
    if facts.certificate_error:
        yield fault(name, facts.certificate_error, again)
    elif facts.certificate is not None:
        renew = "does `fleet pki serve` run? A worker renews with a third of the life left"
        yield judged_certificate(name, facts.certificate, facts.now_ms, expired=again, late=renew)


def judged_certificate(
    name: str, validity: Validity, now_ms: int, *, expired: str, late: str
) -> Finding:
    """Judge a certificate that is renewed with a third of its life left."""
    left_ms, life_ms = validity.end_ms - now_ms, validity.end_ms - validity.begin_ms
    if left_ms <= 0:
        clock_first = f"is the clock right (timedatectl)? If it is, {expired}"
        return fault(name, f"it ended {_span(-left_ms)} ago", clock_first)
    if now_ms < validity.begin_ms:
        ahead = _span(validity.begin_ms - now_ms)
        return fault(
            name, f"it holds only in {ahead}: the clock is behind", "set the clock: timedatectl"
        )
    # A renewal that is half its time late is more than jitter.
    if left_ms < life_ms / (2 * _LAST_THIRD):
        return note(name, f"it ends in {_span(left_ms)}, and should be renewed by now", late)
    return good(name, f"holds for {_span(left_ms)} more")


def _way(link: LinkFacts | None) -> Iterator[Finding]:
    if link is None:
        return
    name = "way to the broker"
    if not link.addresses:
        yield fault(
            name,
            f"{link.host} is no known name: {link.error}",
            "check the name in broker.url, and the name server: resolvectl status",
        )
    elif link.error:
        yield fault(
            name,
            f"{link.host} ({', '.join(link.addresses)}), port {link.port}: {link.error}",
            f"does the broker run, and does every firewall let port {link.port} through?",
        )
    else:
        yield good(name, f"{link.host} ({', '.join(link.addresses)}), port {link.port}")


def _span(ms: int) -> str:
    hours = ms / 3_600_000
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours:.0f} h" if hours >= 2 else f"{hours * 60:.0f} min"
