"""Where the dispatcher of a local fleet answers over HTTP."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PORT_VARIABLE: Final = "EDGEFLEET_DISPATCHER_GATEWAY__PORT"
_KEYS_VARIABLE: Final = "EDGEFLEET_DISPATCHER_GATEWAY__KEYS_FILE"
_USERS_VARIABLE: Final = "EDGEFLEET_DISPATCHER_GATEWAY__PAGE__USERS_FILE"


def configured_url(config: Path | None, environ: Mapping[str, str]) -> str | None:
    """Return where an operator's own settings put the gateway; None: they do not say."""
    table = {} if config is None else _table(config)
    port = environ.get(PORT_VARIABLE) or table.get("port")
    if port is None:
        return None
    host = str(table.get("host", "127.0.0.1"))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def has_page(config: Path | None, environ: Mapping[str, str]) -> bool:
    """Say whether there is a dashboard: where only keys let in, nobody could log in to it."""
    table = {} if config is None else _table(config)
    page = table.get("page")
    keys = environ.get(_KEYS_VARIABLE) or table.get("keys_file")
    users = environ.get(_USERS_VARIABLE) or (
        page.get("users_file") if isinstance(page, dict) else None
    )
    return bool(users) or not keys


def _table(config: Path) -> dict[str, Any]:
    """What is wrong with the file the dispatcher says, which reads all of it."""
    try:
        found = tomllib.loads(config.read_text("utf-8")).get("gateway", {})
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
