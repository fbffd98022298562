"""What the default model is taught: every generated answer must be right by its own question."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest

from fleet_protocol.calculation import visible
from models.catalog import load_catalog
from models.checkpoints.gguf_reader import GgufSource
from models.checkpoints.tiny import TinyCheckpoint, write_tiny_gguf
from models.distill.cli import plan_of
from models.distill.example import Example
from models.distill.lessons import Lessons
from models.distill.mix import (
    FAMILIES_FOLDER,
    built_in_makers,
    family_makers,
    load_examples,
    stream,
)
from models.distill.plan import Training
from models.distill.templates import FamilyTemplates, load_family
from models.errors import RecipeError
from models.suite.items import load_suite

MAKERS = built_in_makers()
RECIPES = [recipe for recipe in load_catalog().recipes if recipe.distill is not None]
SHARES = plan_of(load_catalog().find("smollm2-135m-device-int8")).shares


def some(name: str, count: int = 150) -> list[Example]:
    return list(islice(stream(MAKERS, {name: 1}, seed=7), count))


def numbers_of(prompt: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", prompt)]


def test_every_share_of_every_recipe_names_a_family_that_exists() -> None:
    assert RECIPES
    for recipe in RECIPES:
        shares = plan_of(recipe).shares
        assert shares
        assert set(shares) <= set(MAKERS)


def test_the_same_seed_makes_the_same_examples() -> None:
    first, second = (list(islice(stream(MAKERS, SHARES, seed=3), 60)) for _ in range(2))

    assert first == second
    assert first != list(islice(stream(MAKERS, SHARES, seed=4), 60))


def test_no_slot_stays_unfilled() -> None:
    for example in islice(stream(MAKERS, SHARES, seed=11), 1_500):
        for text in (example.system or "", example.prompt, example.answer):
            assert not re.search(r"\{[a-z_]+\d*\}", text), example


@pytest.mark.parametrize("name", ["en/command", "en/extract", "zh/command", "zh/extract"])
def test_an_answer_in_json_is_one_line_of_it_with_keys_that_the_prompt_names(name: str) -> None:
    for example in some(name):
        answer = json.loads(example.answer)
        asked = f"{example.system or ''} {example.prompt}"

        assert isinstance(answer, dict)
        assert "\n" not in example.answer
        assert all(key in asked for key in answer), example


@pytest.mark.parametrize("name", ["en/extract", "zh/extract"])
def test_an_extracted_value_stands_in_the_text(name: str) -> None:
    for example in some(name):
        for value in json.loads(example.answer).values():
            assert value is None or str(value).lower() in example.prompt.lower(), example


@pytest.mark.parametrize("name", ["en/classify", "zh/classify"])
def test_a_label_is_one_of_those_that_the_prompt_lists(name: str) -> None:
    for example in some(name):
        assert example.answer in f"{example.system or ''} {example.prompt}", example


def test_a_command_sets_a_value_exactly_if_it_says_one() -> None:
    for example in some("en/command", 300):
        values = list(json.loads(example.answer).values())

        assert len(values) == 3
        assert (values[1] == "set") == (values[2] is not None), example


def test_the_verdict_on_two_numbers_is_right() -> None:
    words = {"above": ("greater than", "more than", ">"), "below": ("less than", "smaller", "<")}
    checked = 0
    for example in some("threshold", 600):
        match = re.search(
            r"(-?[\d.]+) ?(greater than|more than|less than|smaller than|[<>]) ?(-?[\d.]+)\?",
            example.prompt,
        )
        if match is None:
            continue
        checked += 1
        a, b = float(match[1]), float(match[3])
        above = match[2].startswith(words["above"])
        assert visible(example.answer) == ("yes" if (a > b if above else a < b) else "no"), example

    assert checked > 20


def test_about_half_of_the_verdicts_are_yes() -> None:
    yes = sum(visible(example.answer) == "yes" for example in some("threshold", 1_000))

    assert 350 < yes < 650


def test_a_calculation_is_right() -> None:
    operations = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
    }
    checked = 0
    for example in some("arithmetic", 400):
        match = re.search(r"(\d+) ?([-+*/]) ?(\d+)", example.prompt)
        if match is None:
            continue
        checked += 1
        assert float(visible(example.answer)) == operations[match[2]](
            int(match[1]), int(match[3])
        ), example

    assert checked > 80


def test_a_conversion_names_the_unit_that_was_asked_for() -> None:
    for example in some("units"):
        number, unit = visible(example.answer).split(" ", 1)

        assert float(number) is not None
        asked = f"{example.system or ''} {example.prompt}"
        assert unit.lower() in asked.lower(), example


def test_a_summary_holds_every_number_of_a_short_list() -> None:
    for example in some("summary"):
        times = re.findall(r"\d\d:\d\d", example.prompt)
        assert times[0] in example.answer
        assert times[-1] in example.answer
        assert example.answer.count(".") == 1, example


def test_nothing_of_the_held_out_suite_is_taught() -> None:
    held_out = {item.prompt.strip().lower() for item in load_suite()}
    taught = {
        example.prompt.strip().lower() for example in islice(stream(MAKERS, SHARES, seed=1), 4_000)
    }

    assert not held_out & taught


def test_a_question_of_the_suite_is_left_out_however_it_is_typed() -> None:
    asked = load_suite()[0].prompt
    same = Example(family="x", language="en", prompt=f" {asked.upper()} !", answer="seen")
    other = Example(family="x", language="en", prompt="Something else.", answer="unseen")
    makers = {"x": lambda chance: chance.choice([same, other])}

    assert {example.answer for example in islice(stream(makers, {"x": 1}, seed=1), 20)} == {
        "unseen"
    }


def test_a_user_family_is_a_toml_file_and_fixed_examples_beside_it(tmp_path: Path) -> None:
    family = tmp_path / "my_devices.toml"
    family.write_text(
        'family = "command"\n'
        'keys = [["device", "action", "value"]]\n'
        'instructions = ["As JSON with {keys}:"]\n'
        "[slots]\n"
        'thing = ["vent", "mist line"]\n'
        "level = { from = 10, to = 30, step = 10 }\n"
        "[[patterns]]\n"
        'say = ["drive the {thing} to {level} percent"]\n'
        'answer = ["{thing}", "set", "{level}"]\n'
    )
    (tmp_path / "my_devices.jsonl").write_text(
        '{"family": "command", "language": "en", "prompt": "fog!", "answer": "{}"}\n'
    )

    templates, fixed = family_makers(family)

    chance = random.Random(1)
    made = json.loads(templates(chance).answer)
    assert made["device"] in {"vent", "mist line"}
    assert made["value"] in {10, 20, 30}
    assert fixed(chance).prompt == "fog!"


def test_a_family_that_is_none_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("family = 3")

    with pytest.raises(RecipeError, match=r"broken\.toml"):
        load_family(path)


def test_slots_that_name_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "circle.toml"
    path.write_text(
        'family = "x"\nanswer = "y"\n[slots]\na = ["{b}"]\nb = ["{a}"]\n'
        '[[patterns]]\nsay = ["{a}"]\n'
    )

    with pytest.raises(RecipeError, match="circle"):
        FamilyTemplates(load_family(path)).make(random.Random(1))


def test_examples_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text('{"prompt": 3}\n')

    with pytest.raises(RecipeError):
        load_examples(path)


def test_a_share_of_an_unknown_family_is_refused() -> None:
    with pytest.raises(RecipeError, match="en/nonsense"):
        next(stream(MAKERS, {"en/nonsense": 1}, seed=1))


def test_every_family_file_is_used() -> None:
    files = {f"{path.parent.name}/{path.stem}" for path in FAMILIES_FOLDER.glob("*/*")}

    assert files <= set(SHARES)


def test_a_plan_keeps_the_families_it_names_or_all(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyCheckpoint())
    text = GgufSource(tmp_path / "tiny.gguf").text_parts()
    example = Example(family="units", language="en", prompt="a", answer="b")

    kept = {
        keep: Lessons(text, Training(keep=keep)).lesson(example).keep
        for keep in ((), ("facts",), ("facts", "units"), ("*",))
    }

    assert kept == {(): False, ("facts",): False, ("facts", "units"): True, ("*",): True}
