"""`fleet up` as a child process, for who needs a fleet for a while."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import NoReturn, Self

from fleet_cli.context import DataFolder
from fleet_cli.local_fleet import StartError
from fleet_cli.supervisor import program
from fleet_cli.tether import tethered

_STOP_S = 40.0


class FleetProcess:
    """A fleet that is up from entering to leaving.

    Args:
        data: Its data folder.
        words: More words for `fleet up`.
        tell: Takes each line that it says.
    """

    def __init__(self, data: DataFolder, words: list[str], *, tell: Callable[[str], None]) -> None:
        self._words = program("fleet_cli", "up", "--json", "--data", str(data), *words)
        self._tell = tell
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start it and wait until it is up.

        Raises:
            StartError: It ended instead; it has said why.
        """
        self._process = subprocess.Popen(  # noqa: S603  # our own program
            tethered(list(self._words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C reaches us alone; we stop it in order.
            process_group=0,
        )
        self._reader = threading.Thread(target=self._relay, name="fleet-up-words", daemon=True)
        self._reader.start()
        try:
            first = self._process.stdout.readline() if self._process.stdout else ""
        except BaseException:
            self._stop()
            raise
        if not first:
            self._stop()
            raise StartError("the fleet did not come up", hint="its own words are above")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def serve(self) -> NoReturn:
        """Wait for as long as it is up.

        Raises:
            StartError: It ended though nobody here told it to.
        """
        if self._process is not None:
            self._process.wait()
        raise StartError("the fleet has ended", hint="its own words are above; start it again")

    def _relay(self) -> None:
        """Pass on what it says: also later, that a worker crashed and is started again."""
        if self._process is None or self._process.stderr is None:
            return
        for line in self._process.stderr:
            self._tell(line.rstrip())

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None:
            self._reader.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
