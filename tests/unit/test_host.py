"""What a board says of itself, read from a made-up /sys and /proc."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edge_worker.adapters.host_linux import LinuxHost

PI_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid asimddp
CPU implementer\t: 0x41

processor\t: 1
Features\t: other

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
X86_CPUINFO = "processor\t: 0\nmodel name\t: Some CPU @ 2.0 GHz\nflags\t\t: sse2 avx2\n"


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_a_host_without_any_of_it_says_nothing_it_does_not_know(tmp_path: Path) -> None:
    host = LinuxHost(root=tmp_path, vcgencmd="/no/such/command")
    reading, facts = host.read(), host.facts()
    assert (reading.temp_c, reading.throttled, reading.disk_free_mb) == (None, None, None)
    assert facts.cpu_features == ()
    assert facts.board
    assert facts.cores >= 1
    assert facts.memory_mb > 0
    assert 0 <= reading.mem_pct <= 100


def test_a_raspberry_pi_names_itself_and_its_features(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\x00")
    put(tmp_path, "proc/cpuinfo", PI_CPUINFO)
    facts = LinuxHost(root=tmp_path).facts()
    assert facts.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert "asimddp" in facts.cpu_features


def test_a_pc_names_its_cpu(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", X86_CPUINFO)
    facts = LinuxHost(root=tmp_path).facts()
    assert (facts.cpu, facts.cpu_features) == ("Some CPU @ 2.0 GHz", ("avx2", "sse2"))


def test_the_hottest_sane_zone_counts(tmp_path: Path) -> None:
    zones = {"0": "51200", "1": "63750", "2": "-274000", "3": "999000", "4": "", "5": "n/a"}
    for zone, text in zones.items():
        put(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", text)
    assert LinuxHost(root=tmp_path).read().temp_c == 63.75


@pytest.mark.parametrize(
    ("word", "throttled"),
    [("0\n", False), ("50005\n", True), ("0x50000\n", False), ("0x2\n", True), ("soon\n", None)],
)
def test_throttling_is_what_the_firmware_says_of_now_not_of_earlier(
    tmp_path: Path, *, word: str, throttled: bool | None
) -> None:
    put(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", word)
    host = LinuxHost(root=tmp_path, vcgencmd="/no/such/command")
    assert host.read().throttled is throttled


def test_the_firmware_command_is_asked_where_the_file_is_missing(tmp_path: Path) -> None:
    command = tmp_path / "vcgencmd"
    command.write_text("#!/bin/sh\necho throttled=0x50005\n")
    command.chmod(0o755)
    assert LinuxHost(root=tmp_path, vcgencmd=str(command)).read().throttled is True


def test_the_disk_of_the_data_folder_is_watched(tmp_path: Path) -> None:
    free_mb = LinuxHost(root=tmp_path, data=tmp_path).read().disk_free_mb
    assert free_mb is not None
    assert LinuxHost(root=tmp_path, data=tmp_path / "gone").read().disk_free_mb is None


def test_a_disk_that_nobody_may_write_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not LinuxHost(data=tmp_path).read().disk_read_only
    mounted = os.statvfs(tmp_path)
    words = [*mounted[:8], mounted.f_flag | os.ST_RDONLY, mounted.f_namemax]
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(words))
    assert LinuxHost(data=tmp_path).read().disk_read_only


def test_a_disk_that_does_not_answer_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(_path: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    host = LinuxHost(root=tmp_path, data=tmp_path)
    monkeypatch.setattr(os, "statvfs", dead)
    reading = host.read()
    assert (reading.disk_free_mb, reading.disk_read_only) == (None, False)


def test_a_zone_that_is_not_of_the_processor_does_not_count(tmp_path: Path) -> None:
    for zone, (kind, text) in enumerate({"CPU-therm": "48000", "PMIC-Die": "100000"}.items()):
        put(tmp_path, f"sys/class/thermal/thermal_zone{zone}/type", kind)
        put(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", text)
    assert LinuxHost(root=tmp_path).read().temp_c == 48.0


@pytest.mark.parametrize(
    ("devices", "throttled"),
    [
        ({"thermal-cpufreq-0": "0", "pwm-fan": "3"}, False),
        ({"thermal-cpufreq-0": "0", "cpufreq-cpu4": "2"}, True),
        ({"Processor": "1"}, True),
        ({"pwm-fan": "3"}, None),
        ({"thermal-cpufreq-0": "n/a"}, None),
    ],
)
def test_a_clock_the_kernel_lowers_against_the_heat_is_throttled(
    tmp_path: Path, *, devices: dict[str, str], throttled: bool | None
) -> None:
    for number, (kind, state) in enumerate(devices.items()):
        put(tmp_path, f"sys/class/thermal/cooling_device{number}/type", kind)
        put(tmp_path, f"sys/class/thermal/cooling_device{number}/cur_state", state)
    host = LinuxHost(root=tmp_path, vcgencmd="/no/such/command")
    assert host.read().throttled is throttled


@pytest.mark.parametrize(("part", "name"), [("0xd0b", "Cortex-A76"), ("0xD99", "ARM 0xD99")])
def test_an_arm_processor_is_named_by_its_design(tmp_path: Path, *, part: str, name: str) -> None:
    put(tmp_path, "proc/cpuinfo", f"Features\t: asimd\nCPU part\t: {part}\n")
    assert LinuxHost(root=tmp_path).facts().cpu == name
