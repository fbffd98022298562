"""What a model artefact says of itself: `manifest.json` beside the graph.

`models` writes it, a worker reads it and checks every file against it before it loads one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the artefact, by its path below the manifest's folder."""

    path: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """The shapes an engine must allocate for.

    The graph's inputs are `input_ids` int64 [batch, tokens], `seqlens_k` int32 [batch] (valid
    tokens of the row including the new ones, minus 1), `total_len` int32 [1] (longest row
    including the new tokens), `logit_tokens` int64 [1] (of how many of the new tokens, counted
    from the last one, logits are wanted) and per layer `past.N.key` and `past.N.value` float32
    [batch, kv_heads, max_len, head_dim]. Its outputs are `logits` float32
    [batch, logit_tokens, vocab] and `present.N.key`, `present.N.value` in the same buffers.
    """

    layers: Annotated[int, msgspec.Meta(ge=1)]
    kv_heads: Annotated[int, msgspec.Meta(ge=1)]
    head_dim: Annotated[int, msgspec.Meta(ge=1)]
    vocab: Annotated[int, msgspec.Meta(ge=1)]


class GoldenPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt with the first tokens of its greedy answer: proof that the artefact works here.

    Attributes:
        messages: The conversation, as (role, content) pairs.
        prompt_tokens: Number of tokens the chat template and tokenizer make of it.
        expect_tokens: First token ids of the greedy answer at build time.
        expect_text: The text they stand for.
    """

    messages: tuple[tuple[str, str], ...]
    prompt_tokens: int
    expect_tokens: tuple[int, ...]
    expect_text: str


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds that belong to this model.

    Attributes:
        min_confidence: Answers below it are escalated, 0..1.
        max_prompt_tokens: Longest prompt this model is trusted with; None: the context.
    """

    min_confidence: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    max_prompt_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None


class CpuClass(StrEnum):
    """What a processor must be able to do for a graph to be worth running on it.

    Attributes:
        DOT: Multiplies 8-bit numbers by the dozen: x86-64 with AVX2, ARM with dotprod or i8mm
            (Raspberry Pi 5, Jetson Orin).
        BASELINE: ARMv8.0 without them (Raspberry Pi 4, Jetson Nano).
    """

    DOT = "dot"
    BASELINE = "baseline"


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """Another graph of the same weights, for another class of processor.

    Attributes:
        name: Short, unique within the artefact, e.g. `dynamic-u8`.
        graph: Path of the ONNX graph; its external data lies beside it.
        quantization: For people.
        memory_mb: Resident memory to expect with one slot.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    cpu_class: CpuClass
    graph: str
    quantization: str
    memory_mb: Annotated[int, msgspec.Meta(ge=1)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A model artefact.

    Attributes:
        name: What jobs call it, e.g. `smollm2-135m-instruct-int8`.
        version: Of this build; `name` and `version` together never change their bytes.
        graph: Path of the ONNX graph; its external data lies beside it.
        tokenizer: Path of the `tokenizers` JSON file.
        chat_template: Jinja text that turns `messages` into the prompt.
        context_tokens: Most tokens of prompt and answer together.
        memory_mb: Resident memory to expect with one slot.
        stop_tokens: Token ids that end an answer.
        opset: Of the default ONNX domain.
        source: Where the weights came from.
        licence: SPDX expression of the weights.
        quantization: For people, e.g. `int8 weight-only, block 32`.
        cpu_class: Which processors `graph` is for.
        variants: Graphs for other processors; a worker takes the one that suits it.
        refusals: Answers by which this model says that it should not try; a worker hands such a
            job to the cloud as `unsupported`.
    """

    format: int = MANIFEST_FORMAT
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    graph: str
    tokenizer: str
    chat_template: str
    context_tokens: Annotated[int, msgspec.Meta(ge=1)]
    memory_mb: Annotated[int, msgspec.Meta(ge=1)]
    stop_tokens: tuple[int, ...]
    opset: int
    source: str
    licence: str
    quantization: str
    architecture: Architecture
    files: tuple[ModelFile, ...]
    golden: tuple[GoldenPrompt, ...] = ()
    routing: Routing = msgspec.field(default_factory=Routing)
    languages: tuple[str, ...] = ("en",)
    cpu_class: CpuClass = CpuClass.DOT
    variants: tuple[Variant, ...] = ()
    refusals: tuple[str, ...] = ()
