"""The offline answer library as a file that an operator edits while the dispatcher runs."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from cloud_dispatcher.adapters.answer_form import fit
from fleet_protocol.errors import cause_of
from fleet_protocol.library import Library, LibraryAnswer, question_of
from fleet_protocol.library_file import LibraryFileError, parse_library
from fleet_protocol.messages import JobSubmit

_log = structlog.get_logger(__name__)

_NOTHING = Library([])


class FileLibrary:
    """Answers from a file; what cannot be used is named, and the last good one goes on.

    Attributes:
        trouble: Why the file cannot be used as it is now; None: it can.
    """

    def __init__(self, path: Path | None) -> None:
        self.trouble: LibraryFileError | None = None
        self._path = path
        # Its own: turns wait for it, and the loop's threads may all be waiting for a name server.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="library")
        self._library = _NOTHING
        self._seen: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"FileLibrary({self._path}, entries={len(self._library)})"

    def __len__(self) -> int:
        return len(self._library)

    @property
    def has_default(self) -> bool:
        """Whether every question gets an answer."""
        return self._library.has_default

    def answer(self, submit: JobSubmit) -> LibraryAnswer | None:
        """Return the surest answer that is of the job's form."""
        for found in self._library.answers(question_of(submit.conversation)):
            if submit.output is None:
                return found
            fitted = fit(found.text, submit.output)
            if not fitted.misfit:
                return LibraryAnswer(
                    text=fitted.text,
                    kind=found.kind,
                    entry=found.entry,
                    score=found.score,
                    matched=found.matched,
                )
        return None

    async def refresh(self) -> bool:
        """Read the file if it changed since it was last looked at; return whether it did.

        Raises nothing: see `trouble`.
        """
        if self._path is None:
            return False
        loop = asyncio.get_running_loop()
        stamp = await loop.run_in_executor(self._thread, _stamp, self._path)
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            # Making a large one ready takes a while, in which jobs go on.
            self._library = await loop.run_in_executor(self._thread, read_library, self._path)
        except LibraryFileError as error:
            self.trouble = error
            _log.error("library.bad", error=str(error), hint=error.hint)
        else:
            self.trouble = None
            _log.info("library.read", entries=len(self._library))
        return True


def read_library(path: Path) -> Library:
    """Read a library file.

    Raises:
        LibraryFileError: It cannot be read, or not be used; it says where and why.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LibraryFileError(
            f"the library {path} cannot be read: {cause_of(error)}",
            hint="correct [library] file, or the rights of that file",
        ) from error
    return parse_library(text, origin=str(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes with the file; a missing one has a stamp, too."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
