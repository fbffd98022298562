"""What a device or an application imports: submit, wait, stream and cancel jobs.

```python
with FleetClient("mqtt://127.0.0.1:1883", "kitchen") as fleet:
    print(fleet.ask("Name three primary colors.").text)
```

`FleetClient` needs paho-mqtt, `AsyncFleetClient` aiomqtt; everything is imported on first use, so a
program that uses one needs not install the other, nor wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fleet_client.errors import ConnectError, DeniedError, JobTimeoutError

if TYPE_CHECKING:
    from fleet_client.admin import AdminClient
    from fleet_client.aio import AsyncFleetClient, AsyncJobHandle
    from fleet_client.client import FleetClient, JobHandle
    from fleet_client.options import JobOptions, Question
    from fleet_client.stream import StreamPiece
    from fleet_client.tracker import ResendSchedule
    from fleet_client.watch import FleetPicture, FleetWatcher

__all__ = [
    "AdminClient",
    "AsyncFleetClient",
    "AsyncJobHandle",
    "ConnectError",
    "DeniedError",
    "FleetClient",
    "FleetPicture",
    "FleetWatcher",
    "JobHandle",
    "JobOptions",
    "JobTimeoutError",
    "Question",
    "ResendSchedule",
    "StreamPiece",
]

_LATE = {
    "AdminClient": "admin",
    "AsyncFleetClient": "aio",
    "AsyncJobHandle": "aio",
    "FleetClient": "client",
    "FleetPicture": "watch",
    "FleetWatcher": "watch",
    "JobHandle": "client",
    "JobOptions": "options",
    "Question": "options",
    "ResendSchedule": "tracker",
    "StreamPiece": "stream",
}


def __getattr__(name: str) -> Any:
    module = _LATE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
