"""`edge-worker`: its commands, and how an error becomes words and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import msgspec

from edge_worker.cli.exits import exit_code_of
from edge_worker.config import EngineName, WorkerSettings, load_settings
from fleet_protocol import __version__
from fleet_protocol.log import set_up_logging
from fleet_protocol.terminal import ensure_streams, run_program

_F = TypeVar("_F", bound=Callable[..., Any])
_JOB_FLAGS = ("max_tokens", "escalate", "privacy", "deadline_ms")
"""What `route` is told of the job, and not of the worker."""


class Program(click.Group):
    """A command group that ends with this program's exit codes."""

    def main(self, args: Sequence[str] | None = None, **kwargs: Any) -> NoReturn:  # type: ignore[override]  # click's own has parameters that nobody gives us
        """Run the command line and exit."""
        ensure_streams()
        kwargs["standalone_mode"] = False
        sys.exit(
            run_program(
                lambda words: super(Program, self).main(words, **kwargs),
                sys.argv[1:] if args is None else args,
                program="edge-worker",
                extra="edge",
                exit_code_of=exit_code_of,
            )
        )


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 cannot connect, 4 timeout, 5 denied, "
    "6 another worker has this id, 7 to be started again.",
)
@click.version_option(__version__, prog_name="edge-worker")
def main() -> None:
    """Answer a fleet's jobs on this board with an ONNX language model.

    Settings come from --config, then from variables EDGEFLEET_WORKER_..., then from the options.
    """


def _with_settings(function: _F) -> _F:
    """Add the options that set what `WorkerSettings` holds."""
    options = (
        click.option(
            "--config", type=click.Path(path_type=Path), help="TOML file; see example.toml."
        ),
        click.option("--id", help="Name and MQTT identity; default: the host's name."),
        click.option("--broker", metavar="URL", help="mqtt://HOST:PORT or mqtts://HOST:PORT."),
        click.option("--data", metavar="DIR", help="Folder of what must survive."),
        click.option("--engine", type=click.Choice([name.value for name in EngineName])),
        click.option("--model", metavar="NAME|PATH", help="A built model, or an artefact's path."),
        click.option("--slots", type=click.IntRange(1, 256), help="Jobs answered at once."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _settings(config: Path | None, **flags: str | int | None) -> WorkerSettings:
    flags["broker__url"] = flags.pop("broker", None)
    settings = load_settings(config=config, environ=_environ(), flags=flags)
    set_up_logging(level=settings.log_level)
    return settings


def _environ() -> Mapping[str, str]:
    return os.environ


@main.command(short_help="Run the worker until it is told to stop, then drain.")
@_with_settings
def run(config: Path | None, **flags: str | int | None) -> None:
    """Run the worker until SIGTERM or Ctrl-C; running jobs get time to finish."""
    settings = _settings(config, **flags)
    import_module("edge_worker.app").run_worker(settings, _environ())


@main.command(short_help="Get this board's first certificate with a token.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file; see example.toml.")
@click.option("--id", help="Name and MQTT identity; default: the host's name.")
@click.option("--broker", metavar="URL", help="mqtts://HOST:PORT, as the worker will use it.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    required=True,
    help="What `fleet enroll worker ID --token` made; deleted once it is used.",
)
@click.option("--at", metavar="URL", help="Where tokens are taken; default: the broker, port 8884.")
@click.option(
    "--timeout-s", type=click.FloatRange(1.0), default=600.0, show_default=True, help="To wait."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a line.")
def join(config: Path | None, *, as_json: bool, **flags: Any) -> None:
    """Get this board's first certificate with a one-time token, over the network.

    The key is made here and stays here. Key and certificate go where broker.tls of the settings
    names them. Without a token, on a board that has a certificate, there is nothing to do.
    """
    how = {name: flags.pop(name) for name in ("token_file", "at", "timeout_s")}
    settings = _settings(config, **flags)
    import_module("edge_worker.cli.join").join(settings, as_json=as_json, **how)


@main.command(short_help="Say whether the worker would run, without taking jobs.")
@_with_settings
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def check(config: Path | None, *, as_json: bool, **flags: str | int | None) -> int:
    """Check settings, model, broker, spool and board without taking jobs."""
    settings = _settings(config, **flags)
    set_up_logging(level="warning")  # What it finds is told, not how it went about it.
    return int(import_module("edge_worker.cli.check").check(settings, _environ(), as_json=as_json))


@main.command(short_help="Measure this board and prove the model on it.")
@_with_settings
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def selftest(config: Path | None, *, as_json: bool, **flags: str | int | None) -> int:
    """Measure this board with the model and prove its answers; needs no broker."""
    settings = _settings(config, **flags)
    module = import_module("edge_worker.cli.selftest")
    return int(module.selftest(settings, _environ(), as_json=as_json))


@main.command(short_help="Explain where PROMPT would be answered, and why.")
@click.argument("prompt")
@_with_settings
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--escalate", type=click.Choice(["auto", "never", "always"]), default="auto")
@click.option("--privacy", type=click.Choice(["any", "site"]), default="any")
@click.option("--deadline-ms", type=click.IntRange(1), help="The answer must be there by then.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def route(prompt: str, *, config: Path | None, as_json: bool, **flags: str | int | None) -> int:
    """Explain where PROMPT would be answered, and what would change that; needs no broker."""
    job = {name: flags.pop(name) for name in _JOB_FLAGS}
    settings = _settings(config, **flags)
    module = import_module("edge_worker.cli.route")
    asked = msgspec.convert({"prompt": prompt, **job}, module.Asked)
    return int(module.route(settings, _environ(), asked, as_json=as_json))
