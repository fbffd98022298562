"""A build's evaluation is asked once, taken from its record where that is about these bytes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from models.artefacts.build import Build
from models.artefacts.evaluation_step import RECORD_SUFFIX, EvaluationStep
from models.cache import FactoryCache, hash_key
from models.catalog import Promises, Recipe
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, write_tiny_gguf
from models.errors import VerificationError
from models.evaluate import Evaluation, EvaluationGateError, Plan
from models.evaluate.report import Gate
from models.progress import SilentProgress
from models.proof.verify import read_manifest
from models.suite import SuiteItem

ITEM = msgspec.convert(
    {
        "id": "facts-1",
        "family": "facts",
        "language": "en",
        "prompt": "the 12 cats?",
        "check": {"kind": "any", "want": ["\x00never"]},
    },
    SuiteItem,
)
PLAN = Plan(items=(ITEM,), is_measured=False)


class House:
    """One built tiny model, a cache for its evaluations and a folder of records."""

    def __init__(self, home: Path) -> None:
        write_tiny_gguf(home / "tiny.gguf", TinyCheckpoint())
        self.recipe = tiny_entry(home / "tiny.gguf")
        self.cache = FactoryCache(home / "cache")
        self.artefact = Path(Build(self.recipe, self.cache, SilentProgress()).run().path)
        self.manifest = read_manifest(self.artefact)
        self.records = home / "records"
        self.records.mkdir()

    def run(self, progress: SilentProgress, recipe: Recipe | None = None) -> Evaluation:
        step = EvaluationStep(
            recipe or self.recipe, self.cache, progress, plan=PLAN, records=self.records
        )
        files = {file.path: self.artefact / file.path for file in self.manifest.files}
        return step.run(self.manifest, files, TinyCheckpoint(), force=False)

    def asked(self) -> Evaluation:
        """Evaluate; the gates are for models that learnt something."""
        with pytest.raises(EvaluationGateError):
            self.run(SilentProgress())
        (folder,) = (self.cache.root / "factory" / "steps").glob("evaluated-*")
        return msgspec.json.decode((folder / "evaluation.json").read_bytes(), type=Evaluation)

    def record(self, evaluation: Evaluation) -> None:
        path = self.records / f"{self.recipe.name}{RECORD_SUFFIX}"
        path.write_bytes(msgspec.json.encode(evaluation))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_model_that_misses_a_gate_fails_every_time_and_is_asked_once(house: House) -> None:
    evaluation = house.asked()
    assert evaluation.suite_sha256 == hash_key(msgspec.json.encode((ITEM,)))
    progress = SilentProgress()
    with pytest.raises(EvaluationGateError):
        house.run(progress)
    assert progress.steps == []


def test_a_record_about_these_bytes_is_believed_without_asking(house: House) -> None:
    house.record(msgspec.structs.replace(house.asked(), gates=(), quantization="as recorded"))
    progress = SilentProgress()
    assert house.run(progress).quantization == "as recorded"
    assert progress.steps == []


@pytest.mark.parametrize("field", ["artefact_sha256", "suite_sha256", "version"])
def test_a_record_about_anything_else_is_not(house: House, field: str) -> None:
    other = msgspec.structs.replace(house.asked(), gates=(), **{field: "0" * 64})
    house.record(other)
    with pytest.raises(EvaluationGateError):
        house.run(SilentProgress())


def test_a_recorded_gate_holds_as_well(house: House) -> None:
    missed = Gate(name="loss", value=0.5, limit=0.1)
    house.record(msgspec.structs.replace(house.asked(), gates=(missed,)))
    with pytest.raises(EvaluationGateError, match="loss"):
        house.run(SilentProgress())


@pytest.mark.parametrize(("name", "why"), [("en/facts", r"0\.0% right"), ("zh/facts", "not asked")])
def test_a_family_below_the_recipes_promise_fails_the_build(
    house: House, name: str, why: str
) -> None:
    house.record(msgspec.structs.replace(house.asked(), gates=()))
    promised = msgspec.structs.replace(house.recipe, evaluate=Promises(min_accuracy={name: 0.5}))
    with pytest.raises(VerificationError, match=why):
        house.run(SilentProgress(), promised)
