"""What can go wrong in the factory, by what the reader can do about it, and its exit codes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from fleet_protocol.errors import ConfigError, FleetError, RetryableError


class UnknownModelError(ConfigError):
    """The catalog has no model of this name, and no source was given for it."""

    code = "unknown_model"


class RecipeError(ConfigError):
    """A recipe, a task family or a set of examples is not written as one."""

    code = "bad_recipe"


class SourceError(ConfigError):
    """The source is not written as one, or is not there."""

    code = "bad_source"


class MissingExtraError(ConfigError):
    """An optional part of the factory is not installed."""

    code = "missing_extra"


class TeacherError(ConfigError):
    """A teacher cannot be asked as it is set up: its key, address, model or account."""

    code = "bad_teacher"


class TeacherUnavailableError(RetryableError):
    """A teacher does not answer now."""

    code = "teacher_unavailable"


class SourceUnavailableError(RetryableError):
    """The source exists but could not be fetched now."""

    code = "source_unavailable"


class ChecksumError(FleetError):
    """The bytes that arrived are not the ones that were promised."""

    code = "checksum"


class CheckpointError(FleetError):
    """The checkpoint is damaged, or of an architecture that the graph builder does not know."""

    code = "checkpoint"


class VerificationError(FleetError):
    """An artefact does not do what it promises."""

    code = "verification"


class PublishUnavailableError(RetryableError):
    """The place to publish to does not answer, or does not take what it is given."""

    code = "publish_unavailable"


class AlreadyPublishedError(FleetError):
    """This version is published with other bytes."""

    code = "already_published"


class CannotWriteError(RetryableError):
    """The disk is full, read-only or not ours."""

    code = "cannot_write"


class ExitCode(IntEnum):
    """How `python -m models` ends; 2 is Click's for a wrong command line."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    CONFIG = 3
    UNAVAILABLE = 4
    CHECKSUM = 5
    CHECKPOINT = 6
    VERIFICATION = 7
    CANNOT_WRITE = 8
    PUBLISHED = 9
    INTERRUPTED = 130


_EXIT_CODES: tuple[tuple[type[FleetError], ExitCode], ...] = (
    (ConfigError, ExitCode.CONFIG),
    (SourceUnavailableError, ExitCode.UNAVAILABLE),
    (ChecksumError, ExitCode.CHECKSUM),
    (CheckpointError, ExitCode.CHECKPOINT),
    (VerificationError, ExitCode.VERIFICATION),
    (CannotWriteError, ExitCode.CANNOT_WRITE),
    (PublishUnavailableError, ExitCode.UNAVAILABLE),
    (TeacherUnavailableError, ExitCode.UNAVAILABLE),
    (AlreadyPublishedError, ExitCode.PUBLISHED),
)


def exit_code_of(error: FleetError) -> ExitCode:
    """Return how the program ends for `error`."""
    return next(
        (code for kind, code in _EXIT_CODES if isinstance(error, kind)), ExitCode.UNEXPECTED
    )


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write below `path` into `CannotWriteError`."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        if error.errno in _FULL:
            hint = "free about 500 MB there, or name a folder on another disk"
        else:
            hint = "name a folder that you may write to"
        hint += ": EDGEFLEET_CACHE, or the one of this command"
        raise CannotWriteError(f"cannot write {path}: {what}", hint=hint) from error
