"""Proof that an embedding artefact works here: its bytes, its graph, its golden embeddings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from fleet_protocol.manifest import MANIFEST_NAME, EmbeddingManifest
from models.cache import hash_file
from models.embedding.runner import EncoderRunner, plain_tokenizer
from models.errors import VerificationError
from models.proof.verify import graph_opset

# To the exact embedding; a sound graph of 8-bit blocks was measured at 0.994 at worst.
MIN_GOLDEN_COSINE: Final = 0.98
_HINT: Final = "build it again: python -m models embedding build NAME"


class EmbeddingProof(msgspec.Struct, frozen=True, kw_only=True):
    """What the check found.

    Attributes:
        golden: By text, the cosine to the embedding of the unquantised weights.
    """

    name: str
    version: str
    path: str
    size_bytes: int
    load_s: float
    golden: dict[str, float]


def verify_embedding(folder: Path) -> EmbeddingProof:
    """Check a packed artefact against its own manifest.

    Raises:
        VerificationError: A file is missing or damaged, or an embedding is a wrong one.
    """
    manifest = read_embedding_manifest(folder)
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or hash_file(path) != file.sha256:
            raise _unsound(f"{file.path} is not the file that the manifest describes")
    if graph_opset(folder / manifest.graph) != manifest.opset:
        raise _unsound("the graph is of another opset than the manifest says")
    began = time.perf_counter()
    text = (folder / manifest.tokenizer).read_text("utf-8")
    tokenizer = plain_tokenizer(text, max_tokens=manifest.max_tokens)
    runner = EncoderRunner(folder / manifest.graph, tokenizer)
    load_s = time.perf_counter() - began
    return EmbeddingProof(
        name=manifest.name,
        version=manifest.version,
        path=str(folder),
        size_bytes=sum(file.size_bytes for file in manifest.files),
        load_s=round(load_s, 3),
        golden=_check_golden(manifest, runner),
    )


def read_embedding_manifest(folder: Path) -> EmbeddingManifest:
    """Read the manifest; raises VerificationError."""
    try:
        return msgspec.json.decode((folder / MANIFEST_NAME).read_bytes(), type=EmbeddingManifest)
    except (OSError, msgspec.DecodeError) as error:
        raise _unsound(f"{folder} has no manifest of an embedding: {error}") from error


def _check_golden(manifest: EmbeddingManifest, runner: EncoderRunner) -> dict[str, float]:
    cosines: dict[str, float] = {}
    for golden in manifest.golden:
        if len(runner.tokens(golden.text)) != golden.tokens:
            raise _unsound(f"{golden.text!r} has other tokens than when it was built")
        expected = np.frombuffer(golden.vector, "<f2").astype(np.float32)
        found = runner.embed([golden.text])[0]
        cosine = float(found @ expected / np.linalg.norm(expected)) if expected.size else 0.0
        if expected.shape != found.shape or cosine < MIN_GOLDEN_COSINE:
            raise _unsound(f"the embedding of {golden.text!r} is wrong (cosine {cosine:.3f})")
        cosines[golden.text] = round(cosine, 4)
    return cosines


def _unsound(what: str) -> VerificationError:
    return VerificationError(f"the artefact is not sound: {what}", hint=_HINT)
