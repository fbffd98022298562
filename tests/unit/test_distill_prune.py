"""Layers that do nothing are found, and a student is made of what is left."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from models.catalog import Layers, load_catalog, read_recipe
from models.checkpoints.adapter import adapter_folder
from models.checkpoints.checkpoint import layer_weight
from models.checkpoints.tiny import TinyCheckpoint, tiny_shape, write_tiny_gguf
from models.checkpoints.weights import PrunedCheckpoint
from models.cli import cli
from models.distill.cli import plan_of
from models.distill.lessons import Lesson
from models.distill.prune import Divergence, measure_angles, peel, rank_layers, still_layers
from models.errors import ExitCode
from models.graphs.reference import residual_stream
from models.progress import SilentProgress

LESSONS = [
    Lesson([5, 9, 14, 20, 31], [False, False, False, True, True], keep=False),
    Lesson([7, 8, 40, 2], [False, False, True, True], keep=False),
]


def checkpoint_with_idle(*idle: int, layers: int = 6) -> TinyCheckpoint:
    """A checkpoint of which some layers add (nearly) nothing."""
    checkpoint = TinyCheckpoint(msgspec.structs.replace(tiny_shape(), layers=layers))
    for layer in idle:
        for name in ("o", "down"):
            checkpoint.weights[layer_weight(layer, name)] *= np.float32(1e-4)
    return checkpoint


def test_angles_are_those_between_what_layers_read_at_the_answers_positions() -> None:
    checkpoint = TinyCheckpoint()
    angles = measure_angles(checkpoint, LESSONS[:1], SilentProgress())

    read = list(residual_stream(checkpoint, LESSONS[0].tokens))
    wanted = []
    for position in (2, 3):
        before, after = (read[place][position].astype(np.float64) for place in (0, 2))
        cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
        wanted.append(np.arccos(cosine) / np.pi)
    assert angles.shape == (3, 3)
    assert angles[0, 2] == pytest.approx(np.mean(wanted))
    assert angles[1, 1] == pytest.approx(0, abs=1e-6)


def test_the_block_that_does_nothing_is_the_first_to_go() -> None:
    ranking = rank_layers(checkpoint_with_idle(2, 3), LESSONS, SilentProgress(), drop=2)

    assert (ranking.blocks[0].first, ranking.blocks[0].layers) == (2, 2)
    assert ranking.blocks[0].angle < 0.01 < ranking.blocks[1].angle
    assert ranking.choices[0].keep == (0, 1, 4, 5)
    assert ranking.choices[0].kl_nats < 0.01
    assert ranking.positions == 4


def test_idle_layers_that_are_no_block_are_found_too() -> None:
    ranking = rank_layers(checkpoint_with_idle(1, 4), LESSONS, SilentProgress(), drop=2)

    assert ranking.choices[0].keep == (0, 2, 3, 5)
    assert [str(block) for block in ranking.choices[0].blocks] == ["1", "4"]
    assert ranking.choices[0].kl_nats < ranking.choices[1].kl_nats


def test_neighbours_that_turn_little_are_one_block() -> None:
    angles = np.zeros((6, 6))
    angles[np.arange(5), np.arange(1, 6)] = (0.3, 0.1, 0.1, 0.4, 0.2)

    assert [str(block) for block in still_layers(angles, 3)] == ["1-2", "4"]


def test_the_layer_that_is_missed_least_is_peeled_off_first() -> None:
    checkpoint = TinyCheckpoint(msgspec.structs.replace(tiny_shape(), layers=4))
    divergence = Divergence(checkpoint, LESSONS)

    kept = peel(checkpoint, divergence, SilentProgress(), drop=1)

    losses = {
        keep: divergence.of(PrunedCheckpoint(checkpoint, keep))
        for keep in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))
    }
    assert kept == min(losses, key=lambda keep: losses[keep])
    ranking = rank_layers(checkpoint, LESSONS, SilentProgress(), drop=2)
    quick = rank_layers(checkpoint, LESSONS, SilentProgress(), drop=2, is_quick=True)
    assert set(quick.choices) <= set(ranking.choices)
    assert [choice.kl_nats for choice in ranking.choices] == sorted(
        choice.kl_nats for choice in ranking.choices
    )


def test_a_model_diverges_from_itself_by_nothing() -> None:
    checkpoint = TinyCheckpoint()
    pruned = PrunedCheckpoint(checkpoint, (1,))

    divergence = Divergence(checkpoint, LESSONS)
    assert divergence.positions == 4
    assert divergence.of(checkpoint) == 0
    assert divergence.of(pruned) > 0.1


def recipe_text(gguf: Path) -> str:
    return (
        'name = "mine"\nversion = "1"\nsummary = "my own"\n'
        f'[source]\nurl = "file:{gguf.name}"\n'
        '[distill.shares]\n"en/command" = 1\n"units" = 1\n'
    )


def test_the_command_prints_what_to_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "cache"))
    write_tiny_gguf(tmp_path / "tiny.gguf", checkpoint_with_idle(1, layers=4))
    recipe = tmp_path / "mine.toml"
    recipe.write_text(recipe_text(tmp_path / "tiny.gguf"))
    words = ["rank-layers", str(recipe), "--drop", "1", "--examples", "2"]

    shown = CliRunner().invoke(cli, words)
    told = CliRunner().invoke(cli, [*words, "--json"])

    assert shown.exit_code == ExitCode.OK, shown.output
    assert "keep = [0, 2, 3]" in shown.stdout
    assert msgspec.json.decode(told.stdout)["choices"][0]["keep"] == [0, 2, 3]
    too_many = CliRunner().invoke(cli, [*words[:3], "4"])
    assert too_many.exit_code == ExitCode.CONFIG
    assert "has 4 layers" in too_many.stderr


def test_a_teacher_beside_a_recipes_file_is_found_and_lends_its_shares(tmp_path: Path) -> None:
    (tmp_path / "teacher.toml").write_text(recipe_text(tmp_path / "tiny.gguf"))
    student = tmp_path / "student.toml"
    student.write_text(
        'name = "student"\nversion = "1"\nsummary = "s"\n[source]\nurl = "file:tiny.gguf"\n'
        '[layers]\nkeep = [0]\n[distill]\nteacher = "teacher.toml"\n'
    )

    recipe = read_recipe(student)

    assert recipe.distill is not None
    assert recipe.distill.teacher == str(tmp_path / "teacher.toml")
    assert plan_of(recipe).shares == {"en/command": 1, "units": 1}


def test_a_plan_without_shares_and_teacher_teaches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text(tmp_path / "tiny.gguf").partition("[distill")[0] + "[distill]\n")

    result = CliRunner().invoke(cli, ["distill", str(path), "--show"])

    assert result.exit_code == ExitCode.CONFIG
    assert "names no family" in result.stderr


def test_the_pruned_default_model_is_made_of_its_teachers_layers() -> None:
    catalog = load_catalog()
    student = catalog.find("smollm2-135m-device-20l-int8")
    assert student.distill is not None
    assert student.distill.teacher is not None
    teacher = catalog.find(student.distill.teacher)

    assert isinstance(student.layers, Layers)
    assert len(student.layers.keep) == 20
    assert student.source == teacher.source
    assert student.prompt == teacher.prompt
    assert student.refusals == teacher.refusals
    assert student.calculates == teacher.calculates
    assert [item.scheme for item in student.variants] == [item.scheme for item in teacher.variants]
    assert set(student.languages) <= set(teacher.languages)
    assert student.adapter is not None
    adapter_folder(student.adapter)
    assert student.distill.training.keep == ("*",)
