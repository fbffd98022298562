"""What share of the examples each family has, and an endless stream of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from models.distill.events import make_summary
from models.distill.example import Example
from models.distill.numeric import NUMBER_FAMILIES
from models.distill.templates import FamilyTemplates, load_family
from models.errors import RecipeError
from models.suite.items import load_suite

Maker: TypeAlias = Callable[[random.Random], Example]

FAMILIES_FOLDER: Final = Path(str(resources.files("models.distill"))) / "families"


def built_in_makers() -> dict[str, Maker]:
    """Return a maker for every family that comes with the program."""
    makers: dict[str, Maker] = {**NUMBER_FAMILIES, "summary": make_summary}
    for path in sorted(FAMILIES_FOLDER.glob("*/*")):
        name = f"{path.parent.name}/{path.stem}"
        if path.suffix == ".toml":
            makers[name] = FamilyTemplates(load_family(path)).make
        elif path.suffix == ".jsonl":
            makers[name] = _chooser(load_examples(path))
    return makers


def family_makers(path: Path) -> list[Maker]:
    """Return makers for a user's own family: its TOML file, and a JSONL file of the same name."""
    makers: list[Maker] = []
    if path.suffix == ".toml":
        makers.append(FamilyTemplates(load_family(path)).make)
    examples = path.with_suffix(".jsonl")
    if examples.is_file():
        makers.append(_chooser(load_examples(examples)))
    return makers


def load_examples(path: Path) -> list[Example]:
    """Read examples, one JSON object a line.

    Raises:
        RecipeError: A line is not an example, or there is none.
    """
    try:
        examples = [
            msgspec.json.decode(line, type=Example)
            for line in path.read_bytes().splitlines()
            if line.strip()
        ]
    except (OSError, msgspec.DecodeError) as error:
        raise RecipeError(
            f"{path} does not hold examples: {error}",
            hint='write {"family": ..., "language": ..., "prompt": ..., "answer": ...} a line',
        ) from error
    if not examples:
        raise RecipeError(f"{path} is empty", hint="write at least one example into it")
    return examples


def stream(
    makers: Mapping[str, Maker], shares: Mapping[str, float], *, seed: int
) -> Iterator[Example]:
    """Yield examples without end; the same seed yields the same ones.

    A question that the held-out suite asks is left out, should one be made by chance.

    Raises:
        RecipeError: A share names a family that does not exist.
    """
    unknown = sorted(shares.keys() - makers.keys())
    if unknown:
        raise RecipeError(
            f"no such task families: {', '.join(unknown)}",
            hint=f"choose of: {', '.join(sorted(makers))}",
        )
    held_out = {bare_prompt(item.prompt) for item in load_suite()}
    chance = random.Random(seed)  # noqa: S311 - examples, not secrets
    names, weights = list(shares), list(shares.values())
    while True:
        example = makers[chance.choices(names, weights)[0]](chance)
        if bare_prompt(example.prompt) not in held_out:
            yield example


def bare_prompt(prompt: str) -> str:
    """Return a prompt's letters and digits: what is left when it is only typed differently."""
    return "".join(filter(str.isalnum, prompt.lower()))


def _chooser(examples: Sequence[Example]) -> Maker:
    return lambda chance: chance.choice(examples)
