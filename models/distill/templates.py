"""Task families written as TOML: slots, patterns that name them, and ways to word the instruction.

    family = "command"            # what the examples are called in the evaluation
    language = "en"
    keys = [["device", "action", "value"]]        # answer with JSON; several: names vary
    instructions = ["Turn this into JSON with the keys {keys}."]

    [slots]
    thing = ["vent", "grow lamp"]
    device = ["{thing}", "left {thing}"]          # slots may name slots
    level = { from = 0, to = 100, step = 5 }

    [[patterns]]
    say = ["open the {device} to {level} percent"]
    answer = ["{device}", "set", "{level}"]       # one value a key; the rest is null

A slot keeps its value within an example, and a value that is one number slot alone is a number.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from models.distill.example import Example, Json, place_instruction, roughen, write_json
from models.errors import RecipeError

_SLOT: Final = re.compile(r"\{(\w+)\}")
_DEEPEST: Final = 8
_LEFT_OUT: Final = 0.12
_NOTHING: Final = {
    "en": ("unknown", "not given", "n/a", "none", "-", "?", "not stated", "(empty)", "missing"),
    "zh": ("未知", "未填", "无", "-", "不详"),
}


class Range(msgspec.Struct, frozen=True, kw_only=True, rename={"start": "from", "stop": "to"}):
    """Numbers from `from` to `to`, both included."""

    start: float
    stop: float
    step: Annotated[float, msgspec.Meta(gt=0)] = 1

    def draw(self, chance: random.Random) -> int | float:
        """Return one of them; an integer if the steps are."""
        steps = round((self.stop - self.start) / self.step)
        value = round(self.start + self.step * chance.randint(0, steps), 6)
        return int(value) if value == int(value) else value


Slots: TypeAlias = dict[str, list[str] | Range]


class Pattern(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be said, and the answer to it.

    Attributes:
        weight: How often, against the family's other patterns.
        say: Wordings; one is chosen.
        answer: One text for a value of each key, in their order.
        answers: Instead of `answer`: one for each wording.
        fields: For extraction: key and slot.
        ask: Ways to ask for it, `{x}` standing for the first of a pair.
        pairs: Texts and their answers.
    """

    weight: Annotated[int, msgspec.Meta(ge=1)] = 1
    say: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    answers: tuple[tuple[str, ...], ...] = ()
    fields: dict[str, str] = {}
    ask: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


class Concept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a label stands for: words for it, and lines that belong to it."""

    labels: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    lines: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Concepts that can stand side by side in one question."""

    name: str
    concepts: dict[str, Concept]


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A family's file. Which of patterns and groups it has decides what its examples are."""

    family: str
    language: str = "en"
    answer: str | None = None
    keys: tuple[tuple[str, ...], ...] = ()
    instructions: tuple[str, ...] = ()
    list_styles: tuple[str, ...] = (", ",)
    actions: tuple[str, ...] = ()
    extra_keys: dict[str, str] = {}
    slots: Slots = {}
    patterns: tuple[Pattern, ...] = ()
    groups: tuple[Group, ...] = ()


def load_family(path: Path) -> Family:
    """Read a family's TOML file.

    Raises:
        RecipeError: It cannot be read, or is not of this form.
    """
    try:
        content: Any = tomllib.loads(path.read_text("utf-8"))
        return msgspec.convert(content, Family)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(
            f"{path} is not a task family: {error}",
            hint="compare it with the families that come with the program",
        ) from error


class Draft:
    """Slots of one example; each is drawn when it is first named, and kept."""

    def __init__(self, slots: Slots, chance: random.Random) -> None:
        self._slots = slots
        self._chance = chance
        self._values: dict[str, Json] = {}

    def text(self, pattern: str, *, depth: int = 0) -> str:
        """Return the pattern with its slots filled in; unknown names stay as they are."""
        if depth > _DEEPEST:
            raise RecipeError(f"slots name each other in a circle: {pattern}", hint="untie them")

        def fill(match: re.Match[str]) -> str:
            name = match[1]
            if name not in self._slots:
                return match[0]
            if name not in self._values:
                self._values[name] = self._draw(name, depth)
            return str(self._values[name])

        return _SLOT.sub(fill, pattern)

    def value(self, pattern: str) -> Json:
        """As `text`, but a number slot alone gives its number."""
        text = self.text(pattern)
        alone = _SLOT.fullmatch(pattern)
        return self._values.get(alone[1], text) if alone else text

    def fix(self, name: str, text: str) -> None:
        """Give a slot this text, whatever it would have been."""
        self._values[name] = text

    def _draw(self, name: str, depth: int) -> Json:
        slot = self._slots[name]
        if isinstance(slot, Range):
            return slot.draw(self._chance)
        return self.text(self._chance.choice(slot), depth=depth + 1)


class FamilyTemplates:
    """Makes examples of one family's file."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._weights = [pattern.weight for pattern in family.patterns]

    def make(self, chance: random.Random) -> Example:
        """Return the next example; the same chance makes the same one."""
        family = self._family
        if family.groups:
            return self._label(chance)
        pattern = chance.choices(family.patterns, self._weights)[0]
        draft = Draft(family.slots, chance)
        if pattern.pairs:
            return self._rewrite(pattern, draft, chance)
        if pattern.fields:
            return self._extract(pattern, draft, chance)
        if family.keys:
            return self._command(pattern, draft, chance)
        said = roughen(draft.text(chance.choice(pattern.say)), chance)
        return self._example(None, said, draft.text(family.answer or pattern.answer[0]))

    def _command(self, pattern: Pattern, draft: Draft, chance: random.Random) -> Example:
        wording = chance.randrange(len(pattern.say))
        said = draft.text(pattern.say[wording])
        answer = pattern.answers[wording] if pattern.answers else pattern.answer
        keys = chance.choice(self._family.keys)
        values = [draft.value(part) for part in answer]
        instruction = _name_keys(keys, self._family, chance)
        actions = list(self._family.actions)
        chance.shuffle(actions)
        instruction = instruction.replace("{actions}", ", ".join(actions))
        system, prompt = self._place(instruction, roughen(said, chance), chance, carry=True)
        return self._example(system, prompt, write_json(keys, values))

    def _extract(self, pattern: Pattern, draft: Draft, chance: random.Random) -> Example:
        wanted = chance.sample(list(pattern.fields), chance.randint(1, min(4, len(pattern.fields))))
        unsaid = self._leave_out(wanted, pattern, draft, chance)
        said = draft.text(chance.choice(pattern.say))
        values = {
            key: None if key == unsaid else draft.value(pattern.fields[key]) for key in wanted
        }
        if self._family.extra_keys and chance.random() < 0.15:
            extra = chance.choice(list(self._family.extra_keys))
            if extra not in pattern.fields:
                values[extra] = None
        keys = list(values)
        chance.shuffle(keys)
        instruction = _name_keys(keys, self._family, chance)
        system, prompt = self._place(instruction, said, chance, carry=False)
        return self._example(system, prompt, write_json(keys, [values[key] for key in keys]))

    def _leave_out(
        self, wanted: Sequence[str], pattern: Pattern, draft: Draft, chance: random.Random
    ) -> str | None:
        """Now and then let the text say that it does not know one of the fields; return its key."""
        nothing = _NOTHING.get(self._family.language)
        if nothing is None or chance.random() >= _LEFT_OUT:
            return None
        key = chance.choice(wanted)
        alone = _SLOT.fullmatch(pattern.fields[key])
        others = "".join(other for name, other in pattern.fields.items() if name != key)
        if alone is None or alone[0] in others:
            return None
        draft.fix(alone[1], chance.choice(nothing))
        return key

    def _label(self, chance: random.Random) -> Example:
        group = chance.choice(self._family.groups)
        most = min(5, len(group.concepts))
        concepts = chance.sample(list(group.concepts.values()), chance.randint(2, most))
        labels = [chance.choice(concept.labels) for concept in concepts]
        if len(set(labels)) < len(labels):
            return self._label(chance)
        right = chance.randrange(len(concepts))
        line = Draft(self._family.slots, chance).text(chance.choice(concepts[right].lines))
        if chance.random() < 0.1:
            labels = [label.upper() for label in labels]
        chosen = labels[right]
        instruction = chance.choice(self._family.instructions)
        instruction = _name_labels(instruction, labels, self._family, chance)
        system, prompt = self._place(instruction, roughen(line, chance), chance, carry=False)
        return self._example(system, prompt, chosen)

    def _rewrite(self, pattern: Pattern, draft: Draft, chance: random.Random) -> Example:
        given, answer = (draft.text(text) for text in chance.choice(pattern.pairs))
        return self._example(None, chance.choice(pattern.ask).replace("{x}", given), answer)

    def _place(
        self, instruction: str, content: str, chance: random.Random, *, carry: bool
    ) -> tuple[str | None, str]:
        language = self._family.language
        return place_instruction(instruction, content, language=language, draw=chance, carry=carry)

    def _example(self, system: str | None, prompt: str, answer: str) -> Example:
        return Example(
            family=self._family.family,
            language=self._family.language,
            system=system,
            prompt=prompt,
            answer=answer,
        )


def _name_keys(keys: Sequence[str], family: Family, chance: random.Random) -> str:
    """Choose an instruction; fill in {keys}, {key1}, ... and {skeleton} as people list names."""
    instruction = chance.choice(family.instructions)
    quoted = [f'"{key}"' for key in keys] if chance.random() < 0.3 else list(keys)
    listed = ", ".join(quoted)
    if len(keys) > 1 and chance.random() < 0.3:
        last = "和" if family.language == "zh" else " and "
        listed = f"{', '.join(quoted[:-1])}{last}{quoted[-1]}"
    skeleton = "{" + ", ".join(f'"{key}": ...' for key in keys) + "}"
    instruction = instruction.replace("{keys}", listed).replace("{skeleton}", skeleton)
    for number, key in enumerate(keys, 1):
        instruction = instruction.replace(f"{{key{number}}}", key)
    return instruction.replace("{{", "{").replace("}}", "}")


def _name_labels(instruction: str, labels: list[str], family: Family, chance: random.Random) -> str:
    shown = list(labels)
    chance.shuffle(shown)
    comma, either = ("、", "还是") if family.language == "zh" else (", ", " or ")
    listed = chance.choice(family.list_styles).join(shown)
    alternatives = f"{comma.join(shown[:-1])}{either}{shown[-1]}"
    return instruction.replace("{labels_or}", alternatives).replace("{labels}", listed)
