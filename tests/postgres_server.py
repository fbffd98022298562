"""A PostgreSQL of the test run's own: a throw-away folder, a socket in it, a free port."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

import psutil
import psycopg
from psycopg import sql

from fleet_cli.tether import tethered

ROLE: Final = "fleet"
_START_S: Final = 60.0
_SETTINGS: Final = (
    "max_connections=40", "shared_buffers=32MB", "unix_socket_permissions=0777", "jit=off",
    "logging_collector=off",
)  # fmt: skip


def find_postgres() -> Path | None:
    """Return the folder of the server's programs, the newest if there are several."""
    known = shutil.which("postgres")
    if known is not None:
        return Path(known).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda path: float(path.parents[1].name), default=None)
    return None if newest is None else newest.parent


class PostgresServer:
    """A server from start to stop; it keeps its port and its data when it starts again.

    It does not outlive this process. A server refuses to run as root: then it runs as `postgres`.
    Over the socket nobody is asked for a password, over TCP everybody.
    """

    def __init__(self, *, fsync: bool = False) -> None:
        programs = find_postgres()
        assert programs is not None
        self._programs = programs
        self._fsync = fsync
        self.password = secrets.token_urlsafe(12)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        # Not below pytest's own folders: only their owner may enter those.
        self.folder = Path(tempfile.mkdtemp(prefix="fleet-pg-"))
        self._data = self.folder / "data"
        self._log = (self.folder / "server.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
            with self.admin() as conn:
                conn.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(ROLE), sql.Literal(self.password)
                    )
                )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str, *, role: str = ROLE) -> str:
        """Where a database is, over the socket."""
        return f"postgresql://{role}@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str, *, port: int | None = None) -> str:
        """Where a database is, over TCP."""
        return f"postgresql://{ROLE}@127.0.0.1:{port or self.port}/{database}"

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Connect as one who may do everything."""
        return psycopg.connect(self.url(database, role="postgres"), autocommit=True)

    def create(self, *, template: str = "template0", encoding: str = "UTF8") -> str:
        """Make a database of the role's; return its name."""
        self._databases += 1
        name = f"t{self._databases}"
        with self.admin() as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} ENCODING {} LOCALE 'C'").format(
                    sql.Identifier(name),
                    sql.Identifier(ROLE),
                    sql.Identifier(template),
                    sql.Literal(encoding),
                )
            )
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is in it."""
        with self.admin() as conn:
            words = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            conn.execute(words.format(sql.Identifier(name)))

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = (*_SETTINGS, f"fsync={'on' if self._fsync else 'off'}", f"port={self.port}")
        words = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self.folder)]
        words += ["-h", "127.0.0.1"]
        for setting in settings:
            words += ["-c", setting]
        self._process = subprocess.Popen(
            _unprivileged(words, dies_with_us=True),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            cwd=self.folder,
        )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, self.last_words()
            assert time.monotonic() < deadline, self.last_words()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it as an upgrade does: sessions are ended, what they had begun is rolled back."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    def kill(self) -> None:
        """Kill -9 the server and all its sessions, as a power cut would.

        Each session is a process group of its own, and may answer once more before it finds out
        that the server is gone.
        """
        if self._process is None or self._process.poll() is not None:
            return
        server = psutil.Process(self._process.pid)
        server.suspend()  # It starts no further ones meanwhile.
        for one in (*server.children(recursive=True), server):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait(30)

    def last_words(self) -> str:
        """Return the end of its log."""
        return (self.folder / "server.log").read_text(errors="replace")[-2_000:]

    def _answers(self) -> bool:
        try:
            self.admin().close()
        except psycopg.OperationalError:
            return False
        return True

    def _make(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        account = _account()
        if account is not None:
            for path in (self.folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        self.folder.chmod(0o755)
        words = [str(self._programs / "initdb"), "-D", str(self._data), "-U", "postgres"]
        words += ["-E", "UTF8", "--no-locale", "--no-sync", f"--pwfile={secret}"]
        words += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        outcome = subprocess.run(
            _unprivileged(words), capture_output=True, text=True, check=False, cwd=self.folder
        )
        assert outcome.returncode == 0, outcome.stderr


def _account() -> pwd.struct_passwd | None:
    """Return the account it must run as; None: our own."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _unprivileged(words: list[str], *, dies_with_us: bool = False) -> list[str]:
    account = _account()
    if account is None:
        return tethered(words) if dies_with_us else words
    who = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return [*who, *(["--pdeathsig=KILL"] if dies_with_us else []), *words]
