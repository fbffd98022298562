"""From a recipe to an artefact: fetch, text, optimize, quantize, verify, evaluate, pack.

Every step's outcome is kept by the hash of what it depends on, the program text that makes it
included, so a build that was interrupted goes on at its step and a second one has nothing to do.
"""

from __future__ import annotations

import hashlib
import time
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from tokenizers import Tokenizer

from fleet_protocol.manifest import GoldenPrompt, Manifest, Variant
from models.artefacts.card import CARD_NAME, model_card
from models.artefacts.evaluation_step import EvaluationStep
from models.artefacts.pack import describe_files, pack
from models.cache import FactoryCache, hash_key, step_files
from models.catalog import Recipe
from models.checkpoints.chat import PromptEncoder, check_text_parts
from models.checkpoints.checkpoint import Checkpoint, SourceModel, TextParts
from models.checkpoints.weights import WideCheckpoint, hash_weights, open_source, recipe_checkpoint
from models.evaluate import Evaluation
from models.evaluate.report import EVALUATION_NAME
from models.evaluate.store import summarize
from models.graphs.smooth import SmoothedCheckpoint, measure_factors, sample_tokens
from models.graphs.variants import describe, graph_bytes, graph_name, write_variants
from models.progress import Progress
from models.proof.calculations import AnswerReader
from models.proof.measure import Measurement
from models.proof.verify import Fidelity, Verified, promise, verify_variants
from models.routing.record import recorded_routing
from models.sources.fetch import fetch
from models.sources.hub import Fetched

TOKENIZER_NAME: Final = "tokenizer.json"
_TEXT_NAME: Final = "text.json"
_FACTORS_NAME: Final = "factors.msgpack"
_VERIFIED_NAME: Final = "verified.json"
_BYTES_PER_FP32: Final = 4
_MEMORY_STEP_MB: Final = 20
# SPDX for "the source does not say".
_LICENCE_UNKNOWN: Final = "NOASSERTION"
_FACTORY: Final = Path(__file__).parents[1]
# What decides the bytes of a step's outcome: a change in one of them makes the step again.
_READ_BY: Final = (
    *("checkpoints/checkpoint", "checkpoints/rope", "checkpoints/chat"),
    *("checkpoints/gguf_reader", "checkpoints/gguf_config"),
    *("checkpoints/safetensors_reader", "checkpoints/hf_config", "checkpoints/tensor_folder"),
)
_WEIGHED_BY: Final = (
    *_READ_BY,
    *("checkpoints/adapter", "checkpoints/weights", "graphs/reference", "graphs/smooth"),
)
_QUANTIZED_BY: Final = (
    *("graphs/quantize", "graphs/products", "graphs/row_products"),
    *("graphs/builder", "graphs/layers", "graphs/norms", "graphs/variants"),
)
_TEXT_BY: Final = (*_READ_BY, "checkpoints/tokenizer")
_VERIFIED_BY: Final = (
    *("proof/verify", "proof/runner", "proof/measure", "proof/calculations"),
    *("graphs/reference", "checkpoints/chat"),
)


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """A finished build.

    Attributes:
        path: The artefact's folder.
        is_new: False: it was there already, bit for bit.
        size_bytes: Of all its files.
        fp32_share: Bytes a board loads for the default graph, over those of the same weights as
            32-bit floats.
        answers: What it said to the golden prompts, first tokens.
        drifted: Golden prompts that this CPU answers in other words.
        variants: By name, what each graph costs here.
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
    variants: dict[str, Measurement]


class Build:
    """One build of one recipe in one cache, which must be locked.

    Each step is a property: reading it does what is not done yet, the steps before it first.
    """

    def __init__(
        self, recipe: Recipe, cache: FactoryCache, progress: Progress, *, force: bool = False
    ) -> None:
        self._recipe = recipe
        self._cache = cache
        self._progress = progress
        self._force = force

    def run(self, out: Path | None = None) -> BuildReport:
        """Do what is not done yet.

        Args:
            out: Folder of the artefact; None: `models/NAME/VERSION` in the cache.
        """
        started = time.perf_counter()
        manifest = self._manifest(self.evaluation)
        self._progress.step("pack")
        target = out or self._cache.artefacts / manifest.name / manifest.version
        is_new = pack(manifest, self._files(), target, reports=self._reports(manifest))
        default = self.verified.variants[0]
        loaded_bytes = graph_bytes(self.quantized, manifest.graph)
        return BuildReport(
            name=manifest.name,
            version=manifest.version,
            path=str(target),
            is_new=is_new,
            elapsed_s=round(time.perf_counter() - started, 2),
            size_bytes=sum(file.size_bytes for file in manifest.files),
            fp32_share=round(loaded_bytes / (self.verified.parameters * _BYTES_PER_FP32), 3),
            memory_mb=manifest.memory_mb,
            fidelity=default.fidelity,
            measured=default.measured,
            answers={item.messages[-1][1]: item.expect_text for item in self.verified.golden},
            drifted=default.drifted,
            variants={item.name: item.measured for item in self.verified.variants},
        )

    @cached_property
    def fetched(self) -> Fetched:
        """The source on this disk."""
        return fetch(self._recipe.source, self._cache, self._progress)

    @cached_property
    def text(self) -> Path:
        """Folder of the tokenizer and the chat template."""

        def make(folder: Path) -> None:
            self._progress.step("tokenizer")
            parts = self._source.text_parts()
            if self._recipe.prompt.chat_template is not None:
                template = self._recipe.prompt.chat_template
                parts = msgspec.structs.replace(parts, chat_template=template)
            check_text_parts(parts)
            (folder / TOKENIZER_NAME).write_text(parts.tokenizer_json, "utf-8")
            (folder / _TEXT_NAME).write_bytes(msgspec.json.encode(parts))

        key = hash_key(
            self.fetched.sha256, self._recipe.prompt.chat_template, _program_hash(*_TEXT_BY)
        )
        return self._cache.step("text", key, make=make, force=self._force)

    @cached_property
    def optimized(self) -> Path:
        """Folder of the factors that move outliers into the weights, adapter and pruning done."""

        def make(folder: Path) -> None:
            self._progress.step("optimize", self._what_is_done_to_weights())
            tokens = sample_tokens(PromptEncoder(self.text_parts))
            factors = measure_factors(WideCheckpoint(self.checkpoint), tokens, self._progress)
            packed = {name: factor.astype("<f4").tobytes() for name, factor in factors.items()}
            (folder / _FACTORS_NAME).write_bytes(msgspec.msgpack.encode(packed))

        key = hash_key(self.weights_key, step_files(self.text), _program_hash(*_WEIGHED_BY))
        return self._cache.step("optimized", key, make=make, force=self._force)

    @cached_property
    def quantized(self) -> Path:
        """Folder of the graphs."""

        def make(folder: Path) -> None:
            write_variants(self._smoothed(), self._recipe.variants, folder, self._progress)

        key = hash_key(
            self.weights_key,
            step_files(self.optimized),
            [(variant.name, variant.scheme) for variant in self._recipe.variants],
            _program_hash(*_WEIGHED_BY, *_QUANTIZED_BY),
        )
        return self._cache.step("graphs", key, make=make, force=self._force)

    @cached_property
    def verified(self) -> Verified:
        """What the graphs are worth beside their weights, and their answers."""

        def make(folder: Path) -> None:
            graphs = {
                variant.name: self.quantized / graph_name(self._recipe.variants, variant)
                for variant in self._recipe.variants
            }
            verified = verify_variants(
                self._recipe, graphs, self.checkpoint, self.text_parts, self._progress
            )
            stated = msgspec.structs.replace(verified, source_licence=self._source.licence)
            (folder / _VERIFIED_NAME).write_bytes(msgspec.json.encode(stated))

        key = hash_key(
            step_files(self.quantized),
            step_files(self.text),
            msgspec.json.encode(self._recipe.golden),
            self._recipe.calculates,
            _program_hash(*_VERIFIED_BY),
        )
        folder = self._cache.step("verified", key, make=make, force=self._force)
        return msgspec.json.decode((folder / _VERIFIED_NAME).read_bytes(), type=Verified)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """What the suite found; None where the recipe does not ask for it."""
        if self._recipe.evaluate is None:
            return None
        manifest, files = self._manifest(None), self._files()
        step = EvaluationStep(self._recipe, self._cache, self._progress)
        return step.run(manifest, files, self.checkpoint, force=self._force)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The recipe's unquantised weights: adapter merged, layers pruned."""
        return recipe_checkpoint(self._recipe, self._source)

    @cached_property
    def text_parts(self) -> TextParts:
        """The tokenizer and the chat template."""
        return msgspec.json.decode((self.text / _TEXT_NAME).read_bytes(), type=TextParts)

    @cached_property
    def _source(self) -> SourceModel:
        return open_source(self.fetched.path)

    @cached_property
    def weights_key(self) -> str:
        """Hash of all that decides `checkpoint`."""
        return hash_weights(self._recipe, self.fetched.sha256)

    def _what_is_done_to_weights(self) -> str:
        done = ["smooth"]
        if self._recipe.adapter is not None:
            done.insert(0, f"merge {Path(self._recipe.adapter.path).name}")
        if self._recipe.layers is not None:
            done.insert(0, f"keep {len(self._recipe.layers.keep)} layers")
        return ", ".join(done)

    def _smoothed(self) -> SmoothedCheckpoint:
        packed = (self.optimized / _FACTORS_NAME).read_bytes()
        factors = msgspec.msgpack.decode(packed, type=dict[str, bytes])
        return SmoothedCheckpoint(
            self.checkpoint, {name: np.frombuffer(raw, "<f4") for name, raw in factors.items()}
        )

    def _files(self) -> dict[str, Path]:
        graphs = {name: self.quantized / name for name in step_files(self.quantized)}
        return graphs | {TOKENIZER_NAME: self.text / TOKENIZER_NAME}

    def _manifest(self, evaluation: Evaluation | None) -> Manifest:
        recipe, verified, text = self._recipe, self.verified, self.text_parts
        default, *others = recipe.variants
        files = describe_files(self._files())
        return Manifest(
            name=recipe.name,
            version=self._version(),
            graph=graph_name(recipe.variants, default),
            tokenizer=TOKENIZER_NAME,
            chat_template=text.chat_template,
            context_tokens=min(
                recipe.context_tokens or verified.context_tokens, verified.context_tokens
            ),
            memory_mb=self._memory_mb(0),
            stop_tokens=text.stop_tokens,
            opset=verified.opset,
            source=self.fetched.origin,
            licence=recipe.licence or verified.source_licence or _LICENCE_UNKNOWN,
            quantization=describe(default.scheme),
            architecture=verified.architecture,
            files=files,
            golden=self._golden(),
            routing=recorded_routing(recipe.name, files) or recipe.routing,
            languages=recipe.languages,
            cpu_class=default.cpu_class,
            variants=tuple(
                Variant(
                    name=variant.name,
                    cpu_class=variant.cpu_class,
                    graph=graph_name(recipe.variants, variant),
                    quantization=describe(variant.scheme),
                    memory_mb=self._memory_mb(index),
                )
                for index, variant in enumerate(others, start=1)
            ),
            refusals=recipe.refusals,
            calculates=recipe.calculates,
            evaluation=None if evaluation is None else summarize(evaluation),
        )

    def _reports(self, manifest: Manifest) -> dict[str, bytes]:
        """Return what lies in the artefact for people, by name."""
        if self.evaluation is None:
            return {}
        return {
            EVALUATION_NAME: msgspec.json.format(msgspec.json.encode(self.evaluation)),
            CARD_NAME: model_card(manifest, self.evaluation).encode(),
        }

    def _version(self) -> str:
        """Return the recipe's version, with what nobody pinned: one version, one set of bytes."""
        recipe = self._recipe
        if recipe.adapter is not None and recipe.adapter.sha256 is None:
            return f"{recipe.version}+{self.weights_key[:8]}"
        if recipe.source.sha256 is None:
            return f"{recipe.version}+{self.fetched.sha256[:8]}"
        return recipe.version

    def _memory_mb(self, index: int) -> int:
        """Return the recipe's figure, or this machine's in coarse steps."""
        measured_mb = self.verified.variants[index].measured.memory_mb
        return self._recipe.variants[index].memory_mb or (
            -(-measured_mb // _MEMORY_STEP_MB) * _MEMORY_STEP_MB
        )

    def _golden(self) -> tuple[GoldenPrompt, ...]:
        """Return the answers as the recipe pins them: another CPU's words change no byte."""
        tokenizer = Tokenizer.from_str(self.text_parts.tokenizer_json)
        reader = AnswerReader(tokenizer, calculates=self._recipe.calculates)
        return tuple(
            promise(said, check.tokens, reader) if check.tokens else said
            for check, said in zip(self._recipe.golden, self.verified.golden, strict=True)
        )


def _program_hash(*modules: str) -> str:
    """Return one hash over the text of modules of the factory."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update((_FACTORY / f"{module}.py").read_bytes())
    return digest.hexdigest()
