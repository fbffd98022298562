"""Renders the parts of the documents that are derived from the code: `python -m docs.render`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from docs.messages_page import render_messages
from docs.metrics_page import render_metrics
from docs.settings_page import render_settings
from fleet_protocol.roles import LADDER, LEAST, MEANINGS, allowed
from fleet_protocol.topics import CATALOGUE

ROOT = Path(__file__).parents[1]
_COMMANDS_INTRODUCTION = """\
# Commands

Rendered from the programs' own help by `make docs`.

What was asked for goes to standard output, everything else to standard error. An error is a line
with its code, `fleet: what happened [code]`, and mostly a second one, `next: what to do`. With
`--json` it is one object on standard output instead, in all programs:
`{"error": {"code": "..", "message": "..", "hint": ".."}}`; also where the command line itself is
wrong (code `usage`). The exit code is the same either way. Streams of `--jsonl` hold nothing but
what was asked for: their errors are lines on standard error.
"""


def render_topics() -> str:
    """Return the table of topics in ARCHITECTURE.md."""
    lines = ["| topic | from | to | QoS | payload |", "|---|---|---|---|---|"]
    for channel in CATALOGUE:
        kinds = " or ".join(f"`{kind.__name__}`" for kind in (channel.message, *channel.also))
        payload = f"text or {kinds}" if channel.text else kinds
        qos = f"{channel.qos}, retained" if channel.retain else f"{channel.qos}"
        receivers = ", ".join(channel.receivers)
        lines.append(
            f"| `{channel.template}` | {channel.sender} | {receivers} | {qos} | {payload} |"
        )
    return "\n".join(lines) + "\n"


def render_roles() -> str:
    """Return the table of docs/security.md: what each role may do, from the table that is asked."""
    lines = [f"| | {' | '.join(LADDER)} |", f"|---|{'---|' * len(LADDER)}"]
    for deed in LEAST:
        cells = ("yes" if allowed(role, deed) else "" for role in LADDER)
        lines.append(f"| {MEANINGS[deed]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def render_situations() -> str:
    """Return the table of docs/providers.md: what the tests play is what the page says."""
    from tests.contract.provider_situations import SITUATIONS  # noqa: PLC0415 - only here

    rows = [f"| {row.situation} | {row.reaction} |" for row in SITUATIONS]
    return "\n".join(["| what happens | what the cloud lane does |", "|---|---|", *rows, ""])


def programs() -> dict[str, click.Command]:
    """Return the programs by what a person types to start them."""
    from cloud_dispatcher.cli.main import main as dispatcher  # noqa: PLC0415 - only here
    from edge_worker.cli.program import main as worker  # noqa: PLC0415 - only here
    from fleet_cli.root import root as fleet  # noqa: PLC0415 - only here
    from models.cli import cli as models  # noqa: PLC0415 - only here

    return {
        "fleet": fleet,
        "cloud-dispatcher": dispatcher,
        "edge-worker": worker,
        "python -m models": models,
    }


def render_commands() -> str:
    """Return docs/commands.md: every command of the programs, from their own help."""
    parts = [_COMMANDS_INTRODUCTION]
    for name, command in programs().items():
        parts.extend(_pages(command, _context(command, name)))
    return "\n".join(parts)


def _pages(command: click.Command, context: click.Context) -> list[str]:
    text = command.get_help(context).rstrip()
    pages = [f"## {context.command_path}\n\n```text\n{text}\n```\n"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                pages.extend(_pages(child, _context(child, name, parent=context)))
    return pages


def _context(
    command: click.Command, name: str, *, parent: click.Context | None = None
) -> click.Context:
    """Return what the command runs in, as wide on every terminal."""
    settings = dict(command.context_settings) | {"terminal_width": 80, "max_content_width": 80}
    return click.Context(command, info_name=name, parent=parent, **settings)


def _put(page: Path, mark: str, table: str) -> None:
    """Replace what stands between a page's marks."""
    text = re.sub(
        rf"(<!-- {mark}:begin -->\n).*(<!-- {mark}:end -->)",
        lambda found: f"{found[1]}{table}{found[2]}",
        page.read_text(),
        flags=re.DOTALL,
    )
    page.write_text(text)


def main() -> None:
    """Write what is rendered into the documents."""
    _put(ROOT / "ARCHITECTURE.md", "topics", render_topics())
    _put(ROOT / "docs" / "providers.md", "situations", render_situations())
    _put(ROOT / "docs" / "security.md", "roles", render_roles())
    (ROOT / "docs" / "commands.md").write_text(render_commands())
    (ROOT / "docs" / "configuration.md").write_text(render_settings())
    (ROOT / "docs" / "messages.md").write_text(render_messages())
    (ROOT / "docs" / "metrics.md").write_text(render_metrics())


if __name__ == "__main__":
    main()
