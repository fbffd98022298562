"""The build's evaluation: from the record that ships with the recipe, else by asking the suite.

The suite takes far longer than the build. As the same recipe gives the same bytes, a recorded
evaluation that names these very bytes, this version and this suite says what asking would say.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from fleet_protocol.manifest import Manifest
from models.artefacts.pack import pack
from models.cache import FactoryCache, hash_key
from models.catalog import Recipe
from models.checkpoints.checkpoint import Checkpoint
from models.errors import VerificationError
from models.evaluate import Evaluation, Plan, enforce, evaluate_artefact
from models.evaluate.fp32 import save_fp32_graph
from models.evaluate.report import EVALUATION_NAME
from models.graphs.builder import GRAPH_NAME
from models.progress import Progress

RECORD_SUFFIX: Final = ".evaluation.json"
_FACTORY: Final = Path(__file__).parents[1]
_RECORDS: Final = _FACTORY / "recipes"
_ASKED_BY: Final = ("evaluate", "suite")


class EvaluationStep:
    """Evaluates one recipe's model, unless its evaluation is known."""

    def __init__(
        self,
        recipe: Recipe,
        cache: FactoryCache,
        progress: Progress,
        *,
        plan: Plan | None = None,
        records: Path = _RECORDS,
    ) -> None:
        self._recipe = recipe
        self._cache = cache
        self._progress = progress
        self._plan = plan or Plan()
        self._records = records

    def run(
        self, manifest: Manifest, files: dict[str, Path], checkpoint: Checkpoint, *, force: bool
    ) -> Evaluation:
        """Return the evaluation.

        Args:
            manifest: Of the artefact, without an evaluation.
            files: Of the artefact, by name.
            checkpoint: The unquantised weights.
            force: Ask even if it was asked before.

        Raises:
            EvaluationGateError: It is worse, or larger, than it may be.
            VerificationError: A family is answered worse than the recipe allows.
        """
        evaluation = None if force else self._recorded(manifest)
        if evaluation is None:
            evaluation = self._asked(manifest, files, checkpoint, force=force)
        enforce(evaluation.gates)
        self._enforce_families(evaluation)
        return evaluation

    def _recorded(self, manifest: Manifest) -> Evaluation | None:
        """Return what ships with the recipe, where it is about these bytes."""
        path = self._records / f"{self._recipe.name}{RECORD_SUFFIX}"
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Evaluation)
        except (OSError, msgspec.DecodeError):
            return None
        about = (found.artefact_sha256, found.version, found.suite_sha256)
        wanted = (_artefact_sha256(manifest), manifest.version, self._suite_sha256())
        return found if about == wanted else None

    def _asked(
        self, manifest: Manifest, files: dict[str, Path], checkpoint: Checkpoint, *, force: bool
    ) -> Evaluation:
        def make(folder: Path) -> None:
            # Beside the step: 700 MB of graphs that nobody needs afterwards.
            with tempfile.TemporaryDirectory(dir=folder.parent) as staged:
                artefact, exact = Path(staged, "artefact"), Path(staged, "fp32")
                pack(manifest, files, artefact)
                exact.mkdir()
                save_fp32_graph(checkpoint, exact, self._progress)
                plan = msgspec.structs.replace(self._plan, fp32_graph=exact / GRAPH_NAME)
                found = evaluate_artefact(artefact, progress=self._progress, plan=plan)
            (folder / EVALUATION_NAME).write_bytes(msgspec.json.encode(found))

        key = hash_key(
            _artefact_sha256(manifest),
            manifest.chat_template,
            manifest.calculates,
            self._suite_sha256(),
            _asked_by(),
        )
        folder = self._cache.step("evaluated", key, make=make, force=force)
        return msgspec.json.decode((folder / EVALUATION_NAME).read_bytes(), type=Evaluation)

    def _suite_sha256(self) -> str:
        return hash_key(msgspec.json.encode(self._plan.asked()))

    def _enforce_families(self, evaluation: Evaluation) -> None:
        scores = evaluation.answers.by_family()
        promised = self._recipe.evaluate.min_accuracy if self._recipe.evaluate else {}
        for name, wanted in promised.items():
            language, _, family = name.partition("/")
            score = scores.get((language, family))
            if score is None or score.share < wanted:
                found = "not asked" if score is None else f"{score.share:.1%} right"
                raise VerificationError(
                    f"{name} is {found}, less than the {wanted:.1%} that the recipe promises",
                    hint="train longer, or promise less in [evaluate] min_accuracy",
                )


def _artefact_sha256(manifest: Manifest) -> str:
    return hash_key(*(file.sha256 for file in manifest.files))


def _asked_by() -> str:
    """Return one hash over the program text that asks and judges."""
    digest = hashlib.sha256()
    for package in _ASKED_BY:
        for path in sorted((_FACTORY / package).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
