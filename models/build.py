"""From a source to an artefact: fetch, tokenizer, smooth, convert, verify, pack.

Every step's outcome is kept by the hash of what it depends on, the program text that makes it
included, so a build that was interrupted goes on at its step and a second one has nothing to do.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Final

import msgspec

from fleet_protocol.manifest import Architecture, GoldenPrompt, Manifest
from models.cache import FactoryCache, hash_file, hash_key
from models.catalog import CatalogEntry
from models.chat import PromptEncoder, check_text_parts
from models.checkpoint import Checkpoint, KeptWeights, SourceModel, TextParts
from models.fetch import fetch
from models.gguf_reader import GgufSource
from models.graph import GRAPH_NAME, WEIGHTS_NAME, GraphBuilder, save_graph
from models.hub import Fetched
from models.measure import Measurement, measure
from models.pack import describe_files, pack
from models.progress import Progress
from models.runner import GraphRunner
from models.safetensors_reader import FolderSource
from models.smooth import SmoothedCheckpoint, measure_factors, sample_tokens
from models.verify import (
    Fidelity,
    architecture_of,
    ask_golden,
    compare_with_weights,
    graph_opset,
)

TOKENIZER_NAME: Final = "tokenizer.json"
_TEXT_NAME: Final = "text.json"
_VERIFIED_NAME: Final = "verified.json"
_BYTES_PER_FP32: Final = 4
_MEMORY_STEP_MB: Final = 20
_KEPT_MAX_BYTES: Final = 1_000_000_000
# SPDX for "the source does not say".
_LICENCE_UNKNOWN: Final = "NOASSERTION"
# What decides the bytes of a step's outcome: a change in one of them makes the step again.
_CONVERTED_BY: Final = (
    *("checkpoint", "gguf_reader", "safetensors_reader", "tensor_folder", "chat"),
    *("reference", "smooth", "quantize", "graph"),
)
_TEXT_BY: Final = ("gguf_reader", "safetensors_reader", "tensor_folder", "tokenizer")
_VERIFIED_BY: Final = ("verify", "reference", "runner", "chat", "measure")


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What the verify step found, kept for the next build."""

    opset: int
    source_licence: str | None
    parameters: int
    context_tokens: int
    architecture: Architecture
    fidelity: Fidelity
    measured: Measurement
    golden: tuple[GoldenPrompt, ...]
    drifted: tuple[str, ...]


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """A finished build.

    Attributes:
        path: The artefact's folder.
        is_new: False: it was there already, bit for bit.
        size_bytes: Of all its files.
        fp32_share: Its size over that of the same weights as 32-bit floats.
        answers: What it said to the golden prompts, first tokens.
        drifted: Golden prompts that this CPU answers in other words.
    """

    name: str
    version: str
    path: str
    is_new: bool
    elapsed_s: float
    size_bytes: int
    fp32_share: float
    memory_mb: int
    fidelity: Fidelity
    measured: Measurement
    answers: dict[str, str]
    drifted: tuple[str, ...]


class Build:
    """One build of one catalog entry in one cache; the cache must be locked."""

    def __init__(
        self, entry: CatalogEntry, cache: FactoryCache, progress: Progress, *, force: bool = False
    ) -> None:
        self._entry = entry
        self._cache = cache
        self._progress = progress
        self._force = force
        self._opened: SourceModel | None = None
        self._kept: Checkpoint | None = None

    def run(self, out: Path | None = None) -> BuildReport:
        """Do what is not done yet.

        Args:
            out: Folder of the artefact; None: `models/NAME/VERSION` in the cache.
        """
        started = time.perf_counter()
        fetched = fetch(self._entry.source, self._cache, self._progress)
        text = self._text(fetched)
        converted = self._convert(fetched, text)
        verified = self._verify(fetched, converted, text)
        self._progress.step("pack")
        files = {
            GRAPH_NAME: converted / GRAPH_NAME,
            WEIGHTS_NAME: converted / WEIGHTS_NAME,
            TOKENIZER_NAME: text / TOKENIZER_NAME,
        }
        manifest = self._manifest(fetched, files, _read_text(text), verified)
        target = out or self._cache.artefacts / manifest.name / manifest.version
        is_new = pack(manifest, files, target)
        size_bytes = sum(file.size_bytes for file in manifest.files)
        return BuildReport(
            name=manifest.name,
            version=manifest.version,
            path=str(target),
            is_new=is_new,
            elapsed_s=round(time.perf_counter() - started, 2),
            size_bytes=size_bytes,
            fp32_share=round(size_bytes / (verified.parameters * _BYTES_PER_FP32), 3),
            memory_mb=manifest.memory_mb,
            fidelity=verified.fidelity,
            measured=verified.measured,
            answers={item.messages[-1][1]: item.expect_text for item in verified.golden},
            drifted=verified.drifted,
        )

    def _convert(self, fetched: Fetched, text: Path) -> Path:
        def make(folder: Path) -> None:
            checkpoint = self._checkpoint(fetched)
            self._progress.step("smooth")
            samples = sample_tokens(PromptEncoder(_read_text(text)))
            smoothed = SmoothedCheckpoint(
                checkpoint, measure_factors(checkpoint, samples, self._progress)
            )
            self._progress.step("convert", f"INT8, blocks of {self._entry.block}")
            builder = GraphBuilder(smoothed, block=self._entry.block)
            save_graph(builder.build(self._progress), folder)

        key = hash_key(
            fetched.sha256,
            hash_file(text / _TEXT_NAME),
            self._entry.block,
            _program_hash(*_CONVERTED_BY),
        )
        return self._cache.step("graph", key, make=make, force=self._force)

    def _text(self, fetched: Fetched) -> Path:
        def make(folder: Path) -> None:
            self._progress.step("tokenizer")
            parts = self._source(fetched).text_parts()
            check_text_parts(parts)
            (folder / TOKENIZER_NAME).write_text(parts.tokenizer_json, "utf-8")
            (folder / _TEXT_NAME).write_bytes(msgspec.json.encode(parts))

        key = hash_key(fetched.sha256, _program_hash(*_TEXT_BY))
        return self._cache.step("text", key, make=make, force=self._force)

    def _verify(self, fetched: Fetched, converted: Path, text: Path) -> Verified:
        graph = converted / GRAPH_NAME

        def make(folder: Path) -> None:
            self._progress.step("verify")
            verified = self._check(fetched, graph, _read_text(text))
            (folder / _VERIFIED_NAME).write_bytes(msgspec.json.encode(verified))

        key = hash_key(
            hash_file(graph),
            hash_file(converted / WEIGHTS_NAME),
            hash_file(text / _TEXT_NAME),
            msgspec.json.encode(self._entry.golden),
            _program_hash(*_VERIFIED_BY),
        )
        folder = self._cache.step("verified", key, make=make, force=self._force)
        return msgspec.json.decode((folder / _VERIFIED_NAME).read_bytes(), type=Verified)

    def _check(self, fetched: Fetched, graph: Path, text: TextParts) -> Verified:
        source = self._source(fetched)
        checkpoint = self._checkpoint(fetched)
        architecture = architecture_of(checkpoint)
        opset = graph_opset(graph)
        runner = GraphRunner(graph, architecture)
        checks = list(self._entry.golden)
        golden, drifted = ask_golden(runner, text, checks)
        prompt = PromptEncoder(text).encode(checks[0].prompt if checks else "Hello")
        fidelity = compare_with_weights(runner, checkpoint, prompt)
        return Verified(
            opset=opset,
            source_licence=source.licence,
            parameters=checkpoint.shape.parameters(),
            context_tokens=checkpoint.shape.context_tokens,
            architecture=architecture,
            fidelity=fidelity,
            measured=measure(graph, architecture, context_tokens=checkpoint.shape.context_tokens),
            golden=golden,
            drifted=drifted,
        )

    def _manifest(
        self, fetched: Fetched, files: dict[str, Path], text: TextParts, verified: Verified
    ) -> Manifest:
        entry = self._entry
        # A source that nobody pinned names itself in the version: one version, one set of bytes.
        pinned = entry.source.sha256 is not None
        return Manifest(
            name=entry.name,
            version=entry.version if pinned else f"{entry.version}+{fetched.sha256[:8]}",
            graph=GRAPH_NAME,
            tokenizer=TOKENIZER_NAME,
            chat_template=text.chat_template,
            context_tokens=min(
                entry.context_tokens or verified.context_tokens, verified.context_tokens
            ),
            # In coarse steps: the same artefact must not differ by a page or two of memory.
            memory_mb=-(-verified.measured.memory_mb // _MEMORY_STEP_MB) * _MEMORY_STEP_MB,
            stop_tokens=text.stop_tokens,
            opset=verified.opset,
            source=fetched.origin,
            licence=entry.licence or verified.source_licence or _LICENCE_UNKNOWN,
            quantization=f"int8 weight-only, block {entry.block}",
            architecture=verified.architecture,
            files=describe_files(files),
            golden=verified.golden,
            routing=entry.routing,
            languages=entry.languages,
        )

    def _checkpoint(self, fetched: Fetched) -> Checkpoint:
        """Keep the weights of a small model between the steps: reading them takes seconds."""
        if self._kept is None:
            checkpoint = self._source(fetched).checkpoint
            size_bytes = checkpoint.shape.parameters() * _BYTES_PER_FP32
            self._kept = KeptWeights(checkpoint) if size_bytes <= _KEPT_MAX_BYTES else checkpoint
        return self._kept

    def _source(self, fetched: Fetched) -> SourceModel:
        """Open the source once, and only when a step needs it."""
        if self._opened is None:
            self._opened = open_source(fetched.path)
        return self._opened


def open_source(path: Path) -> SourceModel:
    """Open a GGUF file or a checkpoint folder; raises CheckpointError."""
    return FolderSource(path) if path.is_dir() else GgufSource(path)


def _read_text(folder: Path) -> TextParts:
    return msgspec.json.decode((folder / _TEXT_NAME).read_bytes(), type=TextParts)


def _program_hash(*modules: str) -> str:
    """Return one hash over the text of modules of this package."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    return digest.hexdigest()
