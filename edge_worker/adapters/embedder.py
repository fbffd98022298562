"""Sentence embeddings from an artefact on this board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from tokenizers import Tokenizer

from edge_worker.adapters.artefact import REBUILD_HINT, check_file
from edge_worker.adapters.onnx_session import open_session
from edge_worker.core.batching import EngineSettings
from edge_worker.core.sampling import Float32Array
from edge_worker.ports import ModelError
from fleet_protocol.codec import UNREADABLE
from fleet_protocol.manifest import MANIFEST_FORMAT, MANIFEST_NAME, EmbeddingManifest

# To the embedding of the unquantised weights; 8-bit blocks were measured at 0.994 at worst.
MIN_GOLDEN_COSINE: Final = 0.98
_BATCH: Final = 16


class OnnxEmbedder:
    """An `Embedder` on onnxruntime. Not thread-safe: one owner, one thread at a time.

    Loaded when the first text comes: a board that asks for no likeness pays nothing for it.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Read the manifest. Raises ModelError: no artefact of embeddings is there."""
        self._folder = folder
        self._manifest = _read_manifest(folder)
        self._threads = threads
        self._encoder: _Encoder | None = None

    @property
    def model(self) -> tuple[str, str]:
        """Name and version of the artefact."""
        return self._manifest.name, self._manifest.version

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        return self._manifest.dimensions

    def embed(self, texts: Sequence[str]) -> Float32Array:
        """Return vectors [texts, dimensions] of length 1; zeros for what it does not know.

        Raises:
            ModelError: At the first text only: a file is missing or damaged, or the graph does
                not do here what its golden embeddings promise.
        """
        if self._encoder is None:
            self._encoder = _load(self._folder, self._manifest, self._threads)
        parts = [
            self._encoder.embed(texts[at : at + _BATCH]) for at in range(0, len(texts), _BATCH)
        ]
        return np.concatenate([np.empty((0, self.dimensions), np.float32), *parts])


class _Encoder:
    def __init__(self, folder: Path, manifest: EmbeddingManifest, threads: int) -> None:
        settings = EngineSettings(intra_op_threads=threads)
        self._session = open_session(folder / manifest.graph, settings)
        self._tokenizer = _open_tokenizer(folder / manifest.tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=manifest.max_tokens)
        # No token has -1: a vocabulary without the mark knows every text.
        unknown = self._tokenizer.token_to_id("[UNK]")
        self._unknown = -1 if unknown is None else unknown
        self._max_unknown_share = manifest.max_unknown_share

    def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def embed(self, texts: Sequence[str]) -> Float32Array:
        rows = [self.tokens(text) for text in texts]
        lengths = np.array([len(row) for row in rows], np.int32)
        input_ids = np.zeros((len(rows), int(lengths.max())), np.int64)
        for place, row in zip(input_ids, rows, strict=True):
            place[: len(row)] = row
        outputs = self._session.run(None, {"input_ids": input_ids, "lengths": lengths})
        vectors = np.array(outputs[0], np.float32)
        for vector, row in zip(vectors, rows, strict=True):
            # The marks at its ends are known, and no words.
            if row.count(self._unknown) > self._max_unknown_share * max(1, len(row) - 2):
                vector[:] = 0
        return vectors


def _load(folder: Path, manifest: EmbeddingManifest, threads: int) -> _Encoder:
    listed = {file.path for file in manifest.files}
    for needed in (manifest.graph, manifest.tokenizer):
        if needed not in listed:
            raise _wrong(folder, f"does not list {needed}")
    for file in manifest.files:
        check_file(folder, file)
    encoder = _Encoder(folder, manifest, threads)
    for golden in manifest.golden:
        expected = np.frombuffer(golden.vector, "<f2").astype(np.float32)
        try:
            found = encoder.embed([golden.text])[0]
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise _wrong(folder, f"does not run here: {error}") from error
        is_same = (
            found.shape == expected.shape and len(encoder.tokens(golden.text)) == golden.tokens
        )
        if not is_same or not found @ expected >= MIN_GOLDEN_COSINE * np.linalg.norm(expected):
            raise _wrong(folder, f"gives another embedding of {golden.text!r} than it promises")
    return encoder


def _open_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        raise ModelError(
            f"{path} is no tokenizer: {error}", code="model_damaged", hint=REBUILD_HINT
        ) from error


def _read_manifest(folder: Path) -> EmbeddingManifest:
    path = folder / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=EmbeddingManifest)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}",
            code="model_missing",
            hint="build it: python -m models embedding build",
        ) from error
    except UNREADABLE as error:
        raise ModelError(
            f"{path} is no manifest of embeddings: {error}",
            code="model_damaged",
            hint=REBUILD_HINT,
        ) from error
    if manifest.format != MANIFEST_FORMAT:
        raise ModelError(
            f"{path} has format {manifest.format}, this program reads {MANIFEST_FORMAT}",
            code="model_format",
            hint="take a model and a worker of the same release",
        )
    return manifest


def _wrong(folder: Path, what: str) -> ModelError:
    return ModelError(
        f"the embedding model in {folder} {what}", code="model_wrong_graph", hint=REBUILD_HINT
    )
