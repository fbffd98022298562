"""`fleet doctor` on a board: facts are read from any tree of files, and judged without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import msgspec
import pytest

from fleet_cli.__main__ import run
from fleet_cli.doctor.board_checks import check_board, check_clock
from fleet_cli.doctor.board_facts import (
    BoardFacts,
    DiskFacts,
    LinkFacts,
    Validity,
    reach,
    read_board,
    validity_of,
)
from fleet_cli.doctor.finding import Finding
from fleet_cli.exits import ExitCode

HOUR_MS: Final = 3_600_000
WELL: Final = BoardFacts(
    worker="pi-7",
    machine="aarch64",
    board="Raspberry Pi 5 Model B Rev 1.0",
    features=frozenset({"asimd", "asimddp"}),
    onnxruntime="1.23.2",
    memory_mb=8_000,
    available_mb=7_000,
    model_mb=280,
    limit_mb=900,
    throttled=0,
    temp_c=51.0,
    disks=(DiskFacts(name="mmcblk0", kind="SD", written_bytes=30_000_000),),
    uptime_s=7_200.0,
    is_clock_synced=True,
    controllers=frozenset({"cpu", "memory"}),
    data="/var/lib/edgefleet/worker",
    data_free_mb=20_000,
    certificate=Validity(0, 72 * HOUR_MS),
    broker=LinkFacts(host="broker.example", port=8_883, addresses=("192.0.2.1",)),
    now_ms=HOUR_MS,
)


def found(name: str, **facts: object) -> Finding:
    """Return the one finding of a name that is not well."""
    changed = msgspec.structs.replace(WELL, **facts)
    (finding,) = [one for one in check_board(changed) if one.name == name and not one.ok]
    return finding


def test_a_board_that_is_well_is_told_so() -> None:
    findings = check_board(WELL)
    assert {one.name for one in findings if not one.ok} == set()
    assert [one.fix for one in findings if one.fix] == []


@pytest.mark.parametrize("machine", ["armv7l", "armv6l", "i686"])
def test_a_system_of_32_bits_cannot_run_a_worker(machine: str) -> None:
    assert "64 bits" in found("processor", machine=machine).fix


def test_a_runtime_that_a_raspberry_pi_4_cannot_run_is_named() -> None:
    old_core = frozenset({"asimd"})
    finding = found("processor", onnxruntime="1.21.0", features=old_core)
    assert finding.needed
    assert "onnxruntime>=" in finding.fix
    assert not found("processor", onnxruntime="1.23.2", features=old_core).needed
    assert check_board(msgspec.structs.replace(WELL, onnxruntime="1.21.0"))[0].ok


def test_a_board_without_the_runtime_needs_it_only_for_a_model() -> None:
    assert "edgefleet[edge]" in found("processor", onnxruntime=None).fix
    echo = msgspec.structs.replace(WELL, onnxruntime=None, engine="echo")
    assert check_board(echo)[0].ok


def test_a_model_that_does_not_fit_is_seen_before_it_is_loaded() -> None:
    assert "smaller model" in found("memory", memory_mb=512).fix
    assert "worker_memory_mb to 400" in found("memory", limit_mb=300).fix


def test_throttling_now_and_since_the_start_are_told_apart() -> None:
    # 0x50005: under-voltage and throttled, now and since the start.
    throttled = msgspec.structs.replace(WELL, throttled=0x50005)
    told = [one for one in check_board(throttled) if one.name == "throttling"]
    assert [one.detail for one in told] == [
        "now: the voltage is too low",
        "now: it is throttled",
    ]
    assert "power supply" in told[0].fix
    assert "fan" in told[1].fix
    since = found("throttling", throttled=0x10000)
    assert since.detail.startswith("since it was switched on")


def test_a_hot_board_wants_cooling() -> None:
    assert "fan" in found("temperature", temp_c=82.0).fix


@pytest.mark.parametrize(
    ("life_time", "pre_eol", "is_over"),
    [((0x0B, 0x01), 1, True), ((0x02, 0x01), 3, True), ((0x09, 0x02), 1, False), ((), 2, False)],
)
def test_a_worn_disk_is_seen_before_it_dies(
    *, life_time: tuple[int, ...], pre_eol: int, is_over: bool
) -> None:
    worn = DiskFacts(name="mmcblk0", kind="MMC", life_time=life_time, pre_eol=pre_eol)
    finding = found("disk mmcblk0", disks=(worn,))
    assert finding.needed is is_over
    assert finding.fix


def test_much_writing_is_told_per_hour_and_only_after_a_while() -> None:
    busy = (DiskFacts(name="mmcblk0", kind="SD", written_bytes=3_000_000_000),)
    assert "1500 MB an hour" in found("disk mmcblk0 writes", disks=busy).detail
    young = msgspec.structs.replace(WELL, disks=busy, uptime_s=600.0)
    assert [one.name for one in check_board(young) if "writes" in one.name] == []


def test_a_folder_that_cannot_be_written_comes_before_how_full_it_is() -> None:
    assert "read-only" in found("data folder", is_read_only=True, data_free_mb=3).detail
    assert "vacuum" in found("data folder", data_free_mb=3).fix
    assert "site.yml" in found("data folder", data_free_mb=None).fix


def test_a_clock_that_nobody_keeps_right_is_noted() -> None:
    assert "timesyncd" in found("clock", is_clock_synced=False).fix
    assert check_clock(is_synced=None).ok


def test_limits_of_memory_need_the_kernels_controller() -> None:
    finding = found("memory limits", controllers=frozenset({"cpu"}))
    assert "cgroup_enable=memory" in finding.fix
    assert "cmdline.txt" in finding.fix
    other = found("memory limits", controllers=frozenset(), board="NVIDIA Jetson Orin Nano")
    assert "cmdline.txt" not in other.fix


@pytest.mark.parametrize(
    ("now_h", "told", "needed"),
    [(80, "ended 8 h ago", True), (-5, "clock is behind", True), (66, "renewed by now", False)],
)
def test_a_certificate_that_does_not_hold_or_was_not_renewed(
    *, now_h: int, told: str, needed: bool
) -> None:
    finding = found("certificate", now_ms=now_h * HOUR_MS)
    assert told in finding.detail
    assert finding.needed is needed
    assert finding.fix


def test_a_certificate_that_is_not_there_is_a_fault() -> None:
    finding = found("certificate", certificate=None, certificate_error="no such file")
    assert "enroll worker pi-7 --token --again" in finding.fix


def test_a_name_without_an_address_and_a_shut_port_are_told_apart() -> None:
    nameless = LinkFacts(host="broker.example", port=8_883, error="Name or service not known")
    assert "resolvectl" in found("way to the broker", broker=nameless).fix
    shut = LinkFacts(host="broker.example", port=8_883, addresses=("192.0.2.1",), error="refused")
    assert "firewall" in found("way to the broker", broker=shut).fix


# ------------------------------------------------------------------ reading


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The files of a Raspberry Pi 4 with an SD card, as its kernel shows them."""
    files = {
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n",
        "proc/meminfo": "MemTotal:        3884360 kB\nMemAvailable:    3212004 kB\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\x00",
        "proc/uptime": "7200.51 27000.11\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
        "sys/class/thermal/thermal_zone0/temp": "61342\n",
        "sys/block/mmcblk0/device/type": "SD\n",
        "sys/block/mmcblk0/stat": "   9713     3270   812324    60021     4108     3303   204800"
        "    71912        0    30000   131933\n",
        "sys/block/loop0/stat": "0 0 0 0 0 0 0 0 0 0 0\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
        "etc/systemd/system/edgefleet-worker.service": "[Service]\nMemoryMax=900M\n",
        "model/manifest.json": '{"name": "tiny", "memory_mb": 280}',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "data").mkdir()
    settings = f'id = "pi-4"\ndata = "{tmp_path}/data"\nmodel = "{tmp_path}/model"\n'
    (tmp_path / "worker.toml").write_text(settings)
    return tmp_path


def test_a_boards_files_become_facts(board: Path) -> None:
    facts = read_board(board / "worker.toml", root=board)
    assert facts.worker == "pi-4"
    assert facts.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert "asimd" in facts.features
    assert (facts.memory_mb, facts.available_mb) == (3_977, 3_289)
    assert (facts.model_mb, facts.limit_mb) == (280, 900)
    assert facts.throttled == 0x50000
    assert facts.temp_c == 61.342
    assert facts.disks == (DiskFacts(name="mmcblk0", kind="SD", written_bytes=204_800 * 512),)
    assert facts.uptime_s == 7_200.51
    assert facts.controllers == {"cpuset", "cpu", "io", "pids"}
    assert facts.data_free_mb is not None
    assert not facts.is_read_only
    told = {one.name for one in check_board(facts) if not one.ok}
    assert told >= {"throttling", "memory limits"}


def test_an_emmc_says_how_worn_it_is(board: Path) -> None:
    device = board / "sys/block/mmcblk0/device"
    (device / "type").write_text("MMC\n")
    (device / "life_time").write_text("0x02 0x01\n")
    (device / "pre_eol_info").write_text("0x01\n")
    (disk,) = read_board(board / "worker.toml", root=board).disks
    assert (disk.kind, disk.life_time, disk.pre_eol) == ("MMC", (2, 1), 1)


def test_an_older_kernel_lists_its_controllers_elsewhere(board: Path) -> None:
    (board / "sys/fs/cgroup/cgroup.controllers").unlink()
    rows = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t1\t0\n"
    (board / "proc/cgroups").write_text(rows)
    assert read_board(board / "worker.toml", root=board).controllers == {"cpu"}


def test_a_host_that_says_nothing_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text('id = "pi-4"\n[broker]\nurl = "mqtt://127.0.0.1:1"\n')
    facts = read_board(tmp_path / "worker.toml", root=tmp_path)
    assert facts.disks == ()
    assert facts.throttled is None
    assert facts.broker is not None
    assert facts.broker.error
    check_board(facts)


def test_what_is_no_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    assert validity_of(tmp_path / "cert.pem")[1]
    assert validity_of(tmp_path / "nowhere.pem")[1]


def test_a_name_that_nobody_knows_has_no_address() -> None:
    facts = reach("no-such-host.invalid", 8_883)
    assert facts.addresses == ()
    assert facts.error


# ------------------------------------------------------------------ the command


def test_the_command_judges_the_board_it_is_on(
    board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["doctor", "--worker", str(board / "worker.toml"), "--json"])
    told = json.loads(capsys.readouterr().out)
    names = {check["name"] for check in told["checks"]}
    assert names >= {"python", "packages [edge]", "processor", "memory", "data folder", "clock"}
    assert "broker" not in names
    is_ok = all(check["ok"] for check in told["checks"] if check["needed"])
    assert (told["ok"], code) == (is_ok, ExitCode.OK if is_ok else ExitCode.JOB_FAILED)


def test_settings_that_cannot_be_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--worker", str(tmp_path / "worker.toml")]) == ExitCode.USAGE
    assert "as root" in capsys.readouterr().err
