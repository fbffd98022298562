"""Where the dispatcher of a local fleet answers over HTTP."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PORT_VARIABLE: Final = "EDGEFLEET_DISPATCHER_GATEWAY__PORT"


def configured_url(config: Path | None, environ: Mapping[str, str]) -> str | None:
    """Return where an operator's own settings put the gateway; None: they do not say."""
    table = {} if config is None else _table(config)
    port = environ.get(PORT_VARIABLE) or table.get("port")
    if port is None:
        return None
    host = str(table.get("host", "127.0.0.1"))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _table(config: Path) -> dict[str, Any]:
    """What is wrong with the file the dispatcher says, which reads all of it."""
    try:
        found = tomllib.loads(config.read_text("utf-8")).get("gateway", {})
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
