"""The `fleet` command and its table of commands."""

from __future__ import annotations

import click

from fleet_cli.lazy import LazyGroup
from fleet_protocol import __version__

_AT = "fleet_cli.commands"

root = LazyGroup(
    name="fleet",
    help="""Start, ask, watch and command a fleet of edge language-model workers.

    \b
    Begin here:
      fleet demo                 see it all once, on this machine
      fleet up                   start a fleet and keep it
      fleet ask "Is 85 over 80?" put a question to it
    """,
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 cannot connect, 4 timeout, 5 denied, "
    "7 a drill lost a job, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    lazy={
        "demo": (f"{_AT}.demo", "Start a fleet on this machine and put real questions to it."),
        "up": (f"{_AT}.up", "Run a fleet on this machine: broker, dispatcher, workers."),
        "ask": (f"{_AT}.ask", "Put one question to the fleet."),
        "submit": (f"{_AT}.submit", "Submit many jobs from a JSON-lines file."),
        "jobs": (f"{_AT}.jobs", "List, show, cancel and retry jobs."),
        "workers": (f"{_AT}.workers", "List, show, drain and resume workers."),
        "alerts": (f"{_AT}.alerts", "List alerts, and say who looks after one."),
        "route": (f"{_AT}.route", "Explain where a prompt would be answered, and why."),
        "sim": (f"{_AT}.sim", "Try scheduling policies out on a modelled fleet."),
        "costs": (f"{_AT}.costs", "Show what the cloud cost, budgets and providers."),
        "cache": (f"{_AT}.cache", "Look at, clear and fill the answer cache."),
        "library": (f"{_AT}.library", "Check and ask an offline answer library."),
        "pki": (f"{_AT}.pki", "Run the fleet's authority: certificates, renewal, revocation."),
        "enroll": (f"{_AT}.enroll", "Give a worker, device or person an identity."),
        "image": (f"{_AT}.image", "Make a card whose board joins the fleet by itself."),
        "acl": (f"{_AT}.acl", "Write and try out who may say and hear what."),
        "audit": (f"{_AT}.audit", "Verify and read the audit log."),
        "drill": (f"{_AT}.drill", "Pull the plugs of a test fleet, and audit its jobs."),
        "watch": (f"{_AT}.watch", "Follow the fleet live."),
        "doctor": (f"{_AT}.doctor", "Check this machine and the fleet, with a fix for each fault."),
        "completion": (f"{_AT}.completion", "Print shell completion."),
    },
)
root = click.version_option(__version__, prog_name="fleet")(root)
