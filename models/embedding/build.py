"""From a sentence-transformers folder to an embedding artefact: fetch, convert, verify, pack."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from fleet_protocol.manifest import EmbeddingManifest, EmbeddingQuality, GoldenEmbedding
from models.artefacts.pack import describe_files, pack
from models.cache import FactoryCache, hash_file, hash_key
from models.embedding.checkpoint import EncoderFolder, EncoderShape
from models.embedding.graph import EncoderGraph
from models.embedding.measure import EncoderCost, measure
from models.embedding.quality import compare, require_close
from models.embedding.recipe import EmbeddingRecipe
from models.embedding.reference import ReferenceEncoder
from models.embedding.runner import EncoderRunner, plain_tokenizer
from models.embedding.sentences import load_pairs, sentences_of
from models.errors import CheckpointError
from models.graphs.builder import GRAPH_NAME, WEIGHTS_NAME, save_graph
from models.progress import Progress
from models.proof.verify import graph_opset
from models.sources.fetch import fetch
from models.sources.hub import Fetched

TOKENIZER_NAME: Final = "tokenizer.json"
_SHAPE_NAME: Final = "shape.json"
_VERIFIED_NAME: Final = "verified.json"
_MEMORY_STEP_MB: Final = 20
_PACKAGE: Final = Path(__file__).parents[1]
# What decides the bytes of a step's outcome: a change in one of them makes the step again.
_CONVERTED_BY: Final = (
    *("embedding/checkpoint.py", "embedding/graph.py", "embedding/runner.py"),
    *("checkpoints/tensor_folder.py", "graphs/quantize.py", "graphs/builder.py"),
)
_VERIFIED_BY: Final = (
    *("embedding/build.py", "embedding/quality.py", "embedding/reference.py"),
    *("embedding/measure.py", "embedding/sentences.tsv"),
)


class VerifiedEncoder(msgspec.Struct, frozen=True, kw_only=True):
    """What the verify step found, kept for the next build."""

    opset: int
    quality: EmbeddingQuality
    cost: EncoderCost
    golden: tuple[GoldenEmbedding, ...]


class EmbeddingReport(msgspec.Struct, frozen=True, kw_only=True):
    """A finished build.

    Attributes:
        path: The artefact's folder.
        is_new: False: it was there already, bit for bit.
        size_bytes: Of all its files.
        fp32_share: Its size over that of the checkpoint's tensors.
    """

    name: str
    version: str
    path: str
    is_new: bool
    elapsed_s: float
    size_bytes: int
    fp32_share: float
    memory_mb: int
    quality: EmbeddingQuality
    cost: EncoderCost


class EmbeddingBuild:
    """One build of one recipe in one cache; the cache must be locked."""

    def __init__(
        self,
        recipe: EmbeddingRecipe,
        cache: FactoryCache,
        progress: Progress,
        *,
        force: bool = False,
    ) -> None:
        self._recipe = recipe
        self._cache = cache
        self._progress = progress
        self._force = force

    def run(self, out: Path | None = None) -> EmbeddingReport:
        """Do what is not done yet.

        Args:
            out: Folder of the artefact; None: `models/NAME/VERSION` in the cache.
        """
        started = time.perf_counter()
        fetched = fetch(self._recipe.source, self._cache, self._progress)
        if not fetched.path.is_dir():
            raise CheckpointError(
                f"{fetched.path.name} is not a checkpoint's folder",
                hint="name a sentence-transformers folder",
            )
        converted = self._convert(fetched)
        verified = self._verify(fetched, converted)
        self._progress.step("pack")
        files = {name: converted / name for name in (GRAPH_NAME, WEIGHTS_NAME, TOKENIZER_NAME)}
        manifest = self._manifest(fetched, converted, files, verified)
        target = out or self._cache.artefacts / manifest.name / manifest.version
        is_new = pack(manifest, files, target)
        size_bytes = sum(file.size_bytes for file in manifest.files)
        return EmbeddingReport(
            name=manifest.name,
            version=manifest.version,
            path=str(target),
            is_new=is_new,
            elapsed_s=round(time.perf_counter() - started, 2),
            size_bytes=size_bytes,
            fp32_share=round(size_bytes / _tensor_bytes(fetched.path), 3),
            memory_mb=manifest.memory_mb,
            quality=verified.quality,
            cost=verified.cost,
        )

    def _convert(self, fetched: Fetched) -> Path:
        def make(folder: Path) -> None:
            source = EncoderFolder(fetched.path)
            tokenizer = plain_tokenizer(source.tokenizer_json(), max_tokens=source.shape.max_tokens)
            (folder / TOKENIZER_NAME).write_text(tokenizer.to_str(pretty=False), "utf-8")
            (folder / _SHAPE_NAME).write_bytes(msgspec.json.encode(source.shape))
            self._progress.step("convert", f"INT8, blocks of {self._recipe.block}")
            graph = EncoderGraph(source, block=self._recipe.block)
            save_graph(graph.build(self._progress), folder)

        key = hash_key(fetched.sha256, self._recipe.block, _program_hash(*_CONVERTED_BY))
        return self._cache.step("encoder", key, make=make, force=self._force)

    def _verify(self, fetched: Fetched, converted: Path) -> VerifiedEncoder:
        def make(folder: Path) -> None:
            self._progress.step("verify", "against the unquantised weights")
            verified = self._check(fetched, converted)
            (folder / _VERIFIED_NAME).write_bytes(msgspec.json.encode(verified))

        hashes = [hash_file(converted / name) for name in (GRAPH_NAME, WEIGHTS_NAME)]
        key = hash_key(*hashes, *self._recipe.golden, _program_hash(*_VERIFIED_BY))
        folder = self._cache.step("encoder-verified", key, make=make, force=self._force)
        return msgspec.json.decode((folder / _VERIFIED_NAME).read_bytes(), type=VerifiedEncoder)

    def _check(self, fetched: Fetched, converted: Path) -> VerifiedEncoder:
        max_tokens = _read_shape(converted).max_tokens
        tokenizer = plain_tokenizer(
            (converted / TOKENIZER_NAME).read_text("utf-8"), max_tokens=max_tokens
        )
        runner = EncoderRunner(converted / GRAPH_NAME, tokenizer)
        pairs = load_pairs()
        texts = [*sentences_of(pairs), *self._recipe.golden]
        tokens = [runner.tokens(text) for text in texts]
        exact = ReferenceEncoder(EncoderFolder(fetched.path)).embed(tokens)
        count = 2 * len(pairs)
        quality = compare(pairs, exact[:count], runner.embed(texts[:count]), tokenizer)
        require_close(quality)
        golden = tuple(
            # The exact one: a board's own must be close to it whatever its CPU rounds.
            GoldenEmbedding(text=text, tokens=len(ids), vector=vector.astype("<f2").tobytes())
            for text, ids, vector in zip(
                texts[count:], tokens[count:], exact[count:].astype(np.float32), strict=True
            )
        )
        self._progress.step("measure")
        cost = measure(converted / GRAPH_NAME, converted / TOKENIZER_NAME, max_tokens=max_tokens)
        opset = graph_opset(converted / GRAPH_NAME)
        return VerifiedEncoder(opset=opset, quality=quality, cost=cost, golden=golden)

    def _manifest(
        self, fetched: Fetched, converted: Path, files: dict[str, Path], verified: VerifiedEncoder
    ) -> EmbeddingManifest:
        recipe, shape = self._recipe, _read_shape(converted)
        # A source that nobody pinned names itself in the version: one version, one set of bytes.
        pinned = recipe.source.sha256 is not None
        return EmbeddingManifest(
            name=recipe.name,
            version=recipe.version if pinned else f"{recipe.version}+{fetched.sha256[:8]}",
            graph=GRAPH_NAME,
            tokenizer=TOKENIZER_NAME,
            dimensions=shape.hidden,
            max_tokens=shape.max_tokens,
            # In coarse steps: the same artefact must not differ by a page or two of memory.
            memory_mb=-(-verified.cost.memory_mb // _MEMORY_STEP_MB) * _MEMORY_STEP_MB,
            opset=verified.opset,
            source=fetched.origin,
            licence=recipe.licence,
            quantization=f"int8 weight-only, block {recipe.block}",
            files=describe_files(files),
            quality=verified.quality,
            golden=verified.golden,
            max_unknown_share=recipe.max_unknown_share,
            languages=recipe.languages,
        )


def _read_shape(converted: Path) -> EncoderShape:
    return msgspec.json.decode((converted / _SHAPE_NAME).read_bytes(), type=EncoderShape)


def _tensor_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _program_hash(*files: str) -> str:
    """Return one hash over files of the factory."""
    digest = hashlib.sha256()
    for name in files:
        digest.update((_PACKAGE / name).read_bytes())
    return digest.hexdigest()
