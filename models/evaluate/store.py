"""Leave what was found of an artefact beside it: its evaluation, its thresholds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from fleet_protocol.manifest import MANIFEST_NAME, EvaluationSummary, Routing
from models.artefacts.card import CARD_NAME, model_card
from models.errors import writing
from models.evaluate.report import EVALUATION_NAME, Evaluation, shares_by_language
from models.proof.verify import read_manifest

_MODE: Final = 0o644


def summarize(evaluation: Evaluation) -> EvaluationSummary:
    """Return what the manifest says of an evaluation."""
    fp32, text, size = evaluation.fp32, evaluation.text, evaluation.size
    return EvaluationSummary(
        asked=evaluation.answers.total.asked,
        accuracy=round(evaluation.answers.total.share, 4),
        accuracy_fp32=None if fp32 is None else round(fp32.total.share, 4),
        families=dict(shares_by_language(evaluation.answers)),
        perplexity=None if text is None else text.perplexity,
        perplexity_fp32=None if text is None else text.perplexity_fp32,
        mean_kl_nats=None if text is None else text.mean_kl_nats,
        top1_share=None if text is None else text.top1_share,
        fp32_share=None if size is None else size.share,
    )


def store(evaluation: Evaluation, folder: Path) -> None:
    """Write the evaluation and the model card, then their summary into the manifest.

    Raises:
        VerificationError: The folder is not an artefact.
        CannotWriteError: The disk is full, read-only or not ours.
    """
    manifest = msgspec.structs.replace(read_manifest(folder), evaluation=summarize(evaluation))
    with writing(folder):
        _replace(folder / EVALUATION_NAME, msgspec.json.format(msgspec.json.encode(evaluation)))
        _replace(folder / CARD_NAME, model_card(manifest, evaluation).encode())
        # Last: a manifest that names figures has them beside it.
        _replace(folder / MANIFEST_NAME, msgspec.json.format(msgspec.json.encode(manifest)))


def store_routing(routing: Routing, folder: Path) -> Routing:
    """Write thresholds into the manifest; what they do not set stays as it was.

    Raises:
        VerificationError: The folder is not an artefact.
        CannotWriteError: The disk is full, read-only or not ours.
    """
    manifest = read_manifest(folder)
    whole = msgspec.structs.replace(
        routing, max_prompt_tokens=routing.max_prompt_tokens or manifest.routing.max_prompt_tokens
    )
    manifest = msgspec.structs.replace(manifest, routing=whole)
    with writing(folder):
        _replace(folder / MANIFEST_NAME, msgspec.json.format(msgspec.json.encode(manifest)))
    return whole


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one move: a worker may be reading the manifest."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(_MODE)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
