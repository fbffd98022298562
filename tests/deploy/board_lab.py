"""Test boards: a real Debian with systemd as PID 1, its own network, real SSH.

A board is a systemd-nspawn container over a base image that all share. Everything that Ansible and
the programs' units do runs unchanged. What differs from a board: the kernel and its page cache are
the host's, so a power cut loses no write that a program made, and the limits of memory and
processor that systemd sets inside are not enforced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from tests.deploy.base_image import NATIVE, OPERATOR, base_image
from tests.deploy.control_groups import ControlGroup
from tests.deploy.warden import Warden

NETWORK: Final = "10.77.0"
_START_S: Final = 180.0
_STOP_S: Final = 60.0


class BoardLab:
    """A local network without internet, and the boards on it. Lifetime is `with`.

    Attributes:
        name: No other lab on this machine has it.
        key: The operator's SSH key.
        known_hosts: The boards' host keys: nobody is believed unseen.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = ""
        self._stack = contextlib.ExitStack()
        self.key = folder / "operator"
        self.known_hosts = folder / "known_hosts"
        self.boards: dict[str, Board] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._forget)
            self.name = stack.enter_context(Warden()).lab
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
            self.known_hosts.touch()
            _run("ip", "netns", "add", self.name)
            for words in (
                "link set lo up",
                "link add br0 type bridge",
                f"addr add {NETWORK}.1/24 dev br0",
                "link set br0 up",
            ):
                _run("ip", "-n", self.name, *words.split())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _forget(self) -> None:
        """Come last, when the warden has taken all boards away."""
        for board in self.boards.values():
            board.forget()

    def add(self, name: str, *, suite: str = "bookworm", architecture: str = NATIVE) -> Board:
        """Make a blank board; it is not switched on yet."""
        image = base_image(suite, architecture)
        board = Board(self, name, number=len(self.boards) + 10, image=image)
        self.boards[name] = board
        board.make()
        return board

    def on_lan(self, *words: str) -> list[str]:
        """Return the command line that runs a command on the local network."""
        return ["ip", "netns", "exec", self.name, *words]


class Board:
    """One of them.

    Attributes:
        address: On the local network.
        written: All that it has written, other than what its image has.
        console: What it says while it starts.
    """

    def __init__(self, lab: BoardLab, name: str, *, number: int, image: Path) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self._lab = lab
        self._image = image
        self._folder = lab.folder / name
        self.root = self._folder / "root"
        self.written = self._folder / "upper"
        self.console = self._folder / "console.log"
        self._net = f"{lab.name}-{number}"
        self._link = f"v{number}"
        self._group = ControlGroup(lab.name, name)
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Lay its disk over the base image, give it a name, host keys and a way in."""
        for part in ("upper", "work", "root"):
            (self._folder / part).mkdir(parents=True)
        self._mount()
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        (self.root / "etc/machine-id").write_text("")
        host_key = self.root / "etc/ssh/ssh_host_ed25519_key"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key))
        with self._lab.known_hosts.open("a") as known:
            known.write(f"{self.address} {host_key.with_suffix('.pub').read_text()}")
        keys = self.root / "home" / OPERATOR / ".ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700)
        keys.write_text(self._lab.key.with_suffix(".pub").read_text())
        home = keys.parent.parent.stat()
        for path in (keys.parent, keys):
            os.chown(path, home.st_uid, home.st_gid)
        _run("ip", "netns", "add", self._net)
        lan = ("ip", "-n", self._lab.name)
        _run(*lan, *f"link add {self._link} type veth peer name eth0 netns {self._net}".split())
        _run(*lan, *f"link set {self._link} master br0 up".split())
        for words in (
            "link set lo up",
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {NETWORK}.1",
        ):
            _run("ip", "-n", self._net, *words.split())

    def switch_on(self) -> None:
        """Start it and wait until it lets the operator in."""
        if not os.path.ismount(self.root):
            self._mount()
        self.plug(connected=True)
        joins = [str(path) for path in self._group.make()]
        words = [
            *("systemd-nspawn", f"--directory={self.root}", f"--hostname={self.name}"),
            # Two labs may have boards of one name.
            f"--machine={self._net}",
            *("--boot", "--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off"),
            f"--network-namespace-path=/run/netns/{self._net}",
        ]
        script = (
            'n=$1; shift; while [ $n -gt 0 ]; do echo $$ > "$1"; shift; n=$((n-1)); done; exec "$@"'
        )
        with self.console.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", str(len(joins)), *joins, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + _START_S
        while self.ssh("true", check=False).returncode:
            assert self._process.poll() is None, self.console.read_text(errors="replace")
            assert time.monotonic() < deadline_s, self.console.read_text(errors="replace")
            time.sleep(0.1)

    @property
    def is_on(self) -> bool:
        """Whether it runs; one that shuts down by itself does not any more."""
        return self._process is not None and self._process.poll() is None

    def switch_off(self) -> None:
        """Shut it down, as `poweroff` does."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._end(self._process)
        self._process = None

    def cut_power(self) -> None:
        """End all of it between two instructions."""
        self.plug(connected=False)
        assert self._process
        self._end(self._process)
        self._process = None
        _run("umount", str(self.root))

    def plug(self, *, connected: bool) -> None:
        """Put its network cable in, or pull it."""
        state = "up" if connected else "down"
        _run("ip", "-n", self._lab.name, "link", "set", self._link, state)

    def freeze(self, *, frozen: bool) -> None:
        """Let the whole board stand still, or go on."""
        self._group.freeze(frozen=frozen)

    def ssh(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on it as the operator."""
        line = self._lab.on_lan("ssh", *self.ssh_options(), f"{OPERATOR}@{self.address}", *words)
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def ssh_options(self) -> Sequence[str]:
        """Return how anybody logs in here."""
        settings = (
            f"UserKnownHostsFile={self._lab.known_hosts}",
            "StrictHostKeyChecking=yes",
            "BatchMode=yes",
            # Of a slow machine; one whose link is down has no route, which is known after 3 s.
            "ConnectTimeout=60",
            "LogLevel=ERROR",
        )
        return ["-i", str(self._lab.key), *(word for each in settings for word in ("-o", each))]

    def forget(self) -> None:
        """Be done with a board whose warden has taken it away."""
        if self._process is not None:
            self._process.wait(_STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._group.kill()
        process.wait(_STOP_S)

    def _mount(self) -> None:
        layers = f"lowerdir={self._image},upperdir={self.written},workdir={self._folder / 'work'}"
        _run("mount", "-t", "overlay", self._net, "-o", layers, str(self.root))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
