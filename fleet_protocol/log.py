"""structlog, set up once: for people on a terminal, one JSON object a line everywhere else.

Event names are constant, `noun.verb`. Prompts and answers are never logged: their lengths are.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any, TextIO, cast

import msgspec
import structlog

_SECRET_KEYS = frozenset({"prompt", "messages", "text", "password", "secret", "api_key", "token"})


def set_up_logging(*, level: str = "info", json: bool | None = None) -> None:
    """Send log lines to standard error.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        json: None decides by whether standard error is a terminal.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if as_json
        else structlog.dev.ConsoleRenderer()
    )
    chain: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp,
        _hide_texts,
        structlog.processors.format_exc_info,
        renderer,
    ]
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lines(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    is_plain = as_json and logging.getLevelNamesMapping()[level.upper()] <= logging.INFO
    _often.aim(_Lines(sys.stderr) if is_plain else None, chain, renderer)


class Often:
    """Writes lines at level `info` whose keys are the fields of a struct, at a third of the cost.

    As JSON it goes past structlog, which builds and copies a dict for each line; bound context is
    not on such a line. Wherever it is written otherwise (for people, or in a test that captures
    lines) it is structlog's.
    """

    def __init__(self) -> None:
        self._file: _Lines | None = None
        self._chain: list[structlog.typing.Processor] = []
        self._renderer: structlog.typing.Processor | None = None
        self._encode = msgspec.json.Encoder(enc_hook=repr).encode

    def aim(
        self,
        file: _Lines | None,
        chain: list[structlog.typing.Processor],
        renderer: structlog.typing.Processor,
    ) -> None:
        """Write there from now on, as long as the chain ends in the renderer; None: never."""
        self._file, self._chain, self._renderer = file, chain, renderer

    def info(self, event: str, line: msgspec.Struct) -> None:
        """Write a line."""
        if self._file is None or not self._is_in_force(line):
            structlog.get_logger().info(event, **msgspec.structs.asdict(line))
            return
        said = self._encode(line).decode()
        self._file.write(
            f'{{"event":"{event}","level":"info","timestamp":"{_timestamp()}",{said[1:]}\n'
        )
        self._file.flush()

    def _is_in_force(self, line: msgspec.Struct) -> bool:
        chain = structlog.get_config()["processors"]
        is_ours = chain is self._chain and chain[-1] is self._renderer
        return is_ours and _SECRET_KEYS.isdisjoint(line.__struct_fields__)


_often = Often()
log_often = _often.info


class _Lines(io.TextIOBase):
    """Where lines go, as long as they can be written: a full disk under a log ends no program."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str, /) -> int:
        """Write, or let the line be lost."""
        try:  # noqa: SIM105 - each line passes here, and `suppress` costs as much as the write
            self._file.write(text)
        except OSError:
            pass
        return len(text)

    def flush(self) -> None:
        """Flush, or leave it to the next line."""
        try:  # noqa: SIM105 - as above
            self._file.flush()
        except OSError:
            pass


def _stamp(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    event["timestamp"] = _timestamp()
    return event


def _timestamp() -> str:
    """ISO 8601 in UTC. The lines of one second share all but its fraction."""
    at_s, at_us = divmod(time.time_ns() // 1_000, 1_000_000)
    return f"{_second(at_s)}.{at_us:06d}Z"


@lru_cache(maxsize=1)
def _second(at_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s))


def _to_json(event: MutableMapping[str, Any], **_options: object) -> str:
    """Three times as fast as the standard library; a log line is a tenth of a job's cost."""
    return msgspec.json.encode(event, enc_hook=repr).decode()


def _hide_texts(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The last gate: whatever slipped in under these names leaves as a length."""
    if _SECRET_KEYS.isdisjoint(event):
        return event
    for key in _SECRET_KEYS & event.keys():
        value = event.pop(key)
        event[f"{key}_chars"] = len(value) if isinstance(value, str | bytes) else None
    return event
