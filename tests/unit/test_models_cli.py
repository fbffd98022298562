"""The factory's command line: answers on standard output, an exit code and a next step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from fleet_protocol.manifest import DEFAULT_MODEL
from models.catalog import load_catalog
from models.checkpoints.chat import render_prompt
from models.checkpoints.tiny import TinyCheckpoint, write_tiny_gguf
from models.cli import cli
from models.errors import ExitCode

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "cache"))

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(cli, words)

    return invoke


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, TinyCheckpoint())
    return path


def test_the_catalog_pins_every_download() -> None:
    for entry in load_catalog().recipes:
        assert entry.source.sha256 is not None
        assert entry.source.member is None or entry.source.member_sha256 is not None
        assert entry.licence is not None
        assert entry.golden or entry.adapter


def test_every_command_explains_itself(run: Run) -> None:
    for command in (
        *("build", "fetch", "list", "optimize", "pack", "publish", "quantize", "show", "verify"),
    ):
        result = run(command, "--help")
        assert result.exit_code == ExitCode.OK
        assert "--json" in result.output


def test_list_says_what_is_built(run: Run) -> None:
    rows = msgspec.json.decode(run("list", "--json").stdout)["models"]
    assert {row["name"]: row["is_built"] for row in rows}[DEFAULT_MODEL] is False
    assert DEFAULT_MODEL[:20] in run("list").stdout


def test_show_names_source_and_licence(run: Run) -> None:
    assert "Apache-2.0" in run("show", DEFAULT_MODEL).stdout
    assert msgspec.json.decode(run("show", DEFAULT_MODEL, "--json").stdout)["name"] == DEFAULT_MODEL


@pytest.mark.parametrize("command", ["build", "show", "fetch"])
def test_an_unknown_model_lists_the_known_ones(run: Run, command: str) -> None:
    result = run(command, "gpt-9")
    assert result.exit_code == ExitCode.CONFIG
    assert "[unknown_model]" in result.stderr
    assert DEFAULT_MODEL in result.stderr
    assert result.stdout == ""


def test_an_error_is_an_object_for_programs(run: Run) -> None:
    error = msgspec.json.decode(run("show", "gpt-9", "--json").stdout)["error"]
    assert error["code"] == "unknown_model"
    assert error["hint"]


def test_a_model_of_your_own_is_built_and_verified(run: Run, gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "artefact"
    result = run("build", "mine", "--from", f"file:{gguf}", "--out", str(out))
    assert result.exit_code == ExitCode.OK, result.output
    assert str(out) in result.stdout
    assert "quantize" in result.stderr
    assert "is sound" in run("verify", str(out)).stdout
    report = msgspec.json.decode(run("verify", str(out), "--json").stdout)
    assert report["name"] == "mine"


def test_json_output_of_a_build_is_one_object_and_nothing_else(run: Run, gguf: Path) -> None:
    result = run("build", "mine", "--from", f"file:{gguf}", "--json")
    report = msgspec.json.decode(result.stdout)
    assert Path(report["path"], "manifest.json").is_file()
    assert result.stderr == ""


def test_a_folder_that_is_no_artefact_fails_verification(run: Run, tmp_path: Path) -> None:
    result = run("verify", str(tmp_path))
    assert result.exit_code == ExitCode.VERIFICATION
    assert "models build" in result.stderr


def test_the_distilled_models_prompt_has_no_system_turn_of_its_own() -> None:
    template = load_catalog().find("smollm2-135m-device-int8").prompt.chat_template
    assert template is not None
    messages = (("system", "Short."), ("user", "Hello"))
    assert render_prompt(template, messages) == (
        "<|im_start|>system\nShort.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_prompt(template, messages[1:]).startswith("<|im_start|>user\n")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("surprise = 1", "surprise"),
        ("[[variants]]\nname = 'a'\nscheme = 'int3-block32'", "scheme"),
        ("variants = []", "variants"),
        ("[layers]\nkeep = []", "keep"),
        ("not toml", "TOML|Expected"),
    ],
)
def test_a_recipe_that_is_none_says_where(run: Run, tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "name = 'mine'\nversion = '1'\nsummary = 'my own'\n"
        + (f"{line}\n[source]\n" if "\n" not in line else f"[source]\nurl = 'file:a'\n{line}\n")
        + ("url = 'file:a'\n" if "\n" not in line else "")
    )
    result = run("show", str(path))
    assert result.exit_code == ExitCode.CONFIG
    assert "[bad_recipe]" in result.stderr
    assert re.search(why, result.stderr)


def test_a_recipes_file_is_built_from_what_lies_beside_it(
    run: Run, gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "name = 'mine'\nversion = '1.2'\nsummary = 'my own'\n"
        f"[source]\nurl = 'file:{gguf.name}'\n[[variants]]\nname = 'rows'\nscheme = 'dynamic-u8'\n"
        "[[golden]]\nprompt = 'the 12 cats'\n"
    )
    step = msgspec.json.decode(run("optimize", str(path), "--json").stdout)
    assert Path(step["path"]).is_dir()
    graphs = msgspec.json.decode(run("quantize", str(path), "--json").stdout)
    assert "model.onnx" in graphs["files"]
    packed = run("pack", str(path))
    assert packed.exit_code == ExitCode.OK, packed.output
    assert msgspec.json.decode(run("show", str(path), "--json").stdout)["is_built"]
    assert "is sound" in run("verify", packed.stdout.strip().splitlines()[-1]).stdout
