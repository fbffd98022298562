"""How far a build is: on standard error for people, nowhere for programs."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Told about steps as they happen."""

    def step(self, name: str, detail: str = "") -> None:
        """A step begins; the one before it is over."""
        ...

    def advance(self, done: int, total: int) -> None:
        """So much of the current step is done; `total` 0 where nobody knows."""
        ...


class SilentProgress:
    """Says nothing; remembers the names of the steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, name: str, detail: str = "") -> None:
        """Remember the step."""
        self.steps.append(f"{name} {detail}".strip())

    def advance(self, done: int, total: int) -> None:
        """Say nothing."""


class BarProgress:
    """One bar a step on standard error; plain lines where that is not a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = RichProgress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._current: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        self._bars.stop()

    def step(self, name: str, detail: str = "") -> None:
        """Finish the bar before and begin another."""
        self._finish()
        if not self._console.is_terminal:
            self._console.print(f"{name}: {detail}" if detail else name, highlight=False)
        self._current = self._bars.add_task(name, total=None, detail=detail)

    def advance(self, done: int, total: int) -> None:
        """Move the current bar."""
        if self._current is not None:
            self._bars.update(self._current, completed=done, total=total or None)

    def _finish(self) -> None:
        if self._current is None:
            return
        for bar in self._bars.tasks:
            if bar.id == self._current:
                total = bar.total or 1
                self._bars.update(self._current, completed=total, total=total)
        self._current = None
