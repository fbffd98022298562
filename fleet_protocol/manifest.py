"""What a model artefact says of itself: `manifest.json` beside the graph.

`models` writes it, a worker reads it and checks every file against it before it loads one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
SEALED_SUFFIX = ".sealed"
"""Ends the name of a file that is there in its sealed form alone (`fleet_pki.sealing`); size and
hash in the manifest are those of what is sealed."""
DEFAULT_MODEL = "smollm2-135m-device-int8"
"""What every program takes that is told no other; also in `edge_worker/example.toml`."""


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
        expect_text: The text they stand for, calculations left out.
        hidden_tokens: Of `expect_tokens`, those of calculations.
    """

    messages: tuple[tuple[str, str], ...]
    prompt_tokens: int
    expect_tokens: tuple[int, ...]
    expect_text: str
    hidden_tokens: int = 0


class DoubtWeights(msgspec.Struct, frozen=True, kw_only=True):
    """What the signs of an answer say, as in `Calibration`."""

    bias: float
    mean: float
    worst: float
    repeated: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What the signs of an answer say about this model (`fleet_protocol.confidence`).

    log(P(wrong) / P(right)) = bias + mean x root of the mean of -log p over the tokens
    + worst x root of the largest -log p + repeated x share of the text that repeats itself.

    Attributes:
        answers: Labelled answers it was fitted on.
        right_share: Of them that were right, 0..1.
        error_rate: Wrong answers among those kept that `min_confidence` was chosen to allow, 0..1.
        kept_right_share: Of the right answers that it keeps, 0..1, on answers left out of the fit.
        kept_wrong_share: Wrong ones among those that it keeps, 0..1, on answers left out.
        auc: How often a wrong answer is trusted less than a right one, on answers left out.
        values: The four numbers for answers that are values, JSON or a number
            (`confidence.is_value`), in place of those above; None: those hold for every answer.
    """

    bias: float
    mean: float
    worst: float
    repeated: float
    answers: int
    right_share: float
    error_rate: float
    kept_right_share: float
    kept_wrong_share: float
    auc: float
    values: DoubtWeights | None = None

    @property
    def may_bound(self) -> bool:
        """Whether doubt never raises confidence, so that an answer's beginning bounds it."""
        weights = (self,) if self.values is None else (self, self.values)
        return all(min(part.mean, part.worst, part.repeated) >= 0 for part in weights)


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds that belong to this model.

    Attributes:
        min_confidence: Answers below it are escalated, 0..1.
        max_prompt_tokens: Longest prompt this model is trusted with; None: the context.
        calibration: Makes a confidence the probability that the answer is right; None: it is the
            geometric mean of the tokens' probabilities.
        difficulty: Says how likely this model is to answer a prompt wrongly; None: nobody knows.
        max_difficulty: Prompts above it are escalated before anything is generated, 0..1.
    """

    min_confidence: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    max_prompt_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    calibration: Calibration | None = None
    difficulty: DifficultyManifest | None = None
    max_difficulty: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 1.0


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


class EvaluationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a model was found to be worth; the whole evaluation lies beside the manifest.

    Attributes:
        asked: Prompts with a known right answer.
        accuracy: Share of them that it answered rightly, 0..1.
        accuracy_fp32: The same of its weights before they were quantised; None: not measured.
        families: By language, then family of tasks: the share of right answers.
        perplexity: On running text; lower is better.
        perplexity_fp32: Before quantisation.
        mean_kl_nats: Divergence of its predictions from those before quantisation.
        top1_share: Of positions at which both predict the same token, 0..1.
        fp32_share: Of its graph's size in that before quantisation, 0..1.
    """

    asked: int
    accuracy: float
    accuracy_fp32: float | None = None
    families: dict[str, dict[str, float]]
    perplexity: float | None = None
    perplexity_fp32: float | None = None
    mean_kl_nats: float | None = None
    top1_share: float | None = None
    fp32_share: float | None = None


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
        languages: It was made for these, as ISO 639-1; a worker hands a prompt in a script that
            none of them is written in to the cloud as `unsupported`.
        opset: Of the default ONNX domain.
        source: Where the weights came from.
        licence: SPDX expression of the weights.
        quantization: For people, e.g. `int8 weight-only, block 32`.
        cpu_class: Which processors `graph` is for.
        variants: Graphs for other processors; a worker takes the one that suits it.
        refusals: Answers by which this model says that it should not try; a worker hands such a
            job to the cloud as `unsupported`.
        calculates: It writes calculations down as `fleet_protocol.calculation` defines them; who
            runs it computes their results and hides them.
        evaluation: None: nobody measured it.
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
    calculates: bool = False
    evaluation: EvaluationSummary | None = None


class GoldenEmbedding(msgspec.Struct, frozen=True, kw_only=True):
    """A text with its embedding: proof that the artefact works here.

    Attributes:
        tokens: What the tokenizer makes of it, the two marks at its ends included.
        vector: float16, little-endian, `dimensions` of them; base64 in JSON.
    """

    text: str
    tokens: Annotated[int, msgspec.Meta(ge=1)]
    vector: bytes


class EmbeddingQuality(msgspec.Struct, frozen=True, kw_only=True):
    """How far 8-bit embeddings are from those of the weights they were made from.

    Attributes:
        sentences: How many were compared; each has one paraphrase among the others.
        mean_cosine: Between the two embeddings of a sentence.
        min_cosine: Of the worst sentence.
        rank_correlation: Spearman's, over the similarities of all pairs of sentences.
        nearest_agreement: Share of sentences that have the same nearest other one.
        paraphrases_found: By language, the share of sentences whose nearest other one is their
            paraphrase.
        paraphrases_found_fp32: The same with the unquantised weights.
        unknown_tokens: By language, the share of tokens that the vocabulary lacks.
    """

    sentences: int
    mean_cosine: float
    min_cosine: float
    rank_correlation: float
    nearest_agreement: float
    paraphrases_found: dict[str, float]
    paraphrases_found_fp32: dict[str, float]
    unknown_tokens: dict[str, float]


class EmbeddingManifest(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="embedding"
):
    """An artefact that turns texts into vectors whose dot product is their likeness.

    The graph's inputs are `input_ids` int64 [batch, tokens], padded on the right with anything,
    and `lengths` int32 [batch] (tokens of each row that count, at least 1). Its output is
    `embedding` float32 [batch, dimensions]: the mean over the row's tokens, of length 1.

    Attributes:
        graph: Path of the ONNX graph; its external data lies beside it.
        tokenizer: Path of the `tokenizers` JSON file; it puts the marks at a text's ends.
        max_tokens: What is longer is cut there, the marks counted.
        memory_mb: Most resident memory of a process that embeds 16 long texts at once.
        max_unknown_share: Of a text's tokens; where the vocabulary lacks more of them, its
            embedding says nothing of it (other scripts look all alike).
        languages: Those it was made for.
    """

    format: int = MANIFEST_FORMAT
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    graph: str
    tokenizer: str
    dimensions: Annotated[int, msgspec.Meta(ge=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=3)]
    memory_mb: Annotated[int, msgspec.Meta(ge=1)]
    opset: int
    source: str
    licence: str
    quantization: str
    files: tuple[ModelFile, ...]
    quality: EmbeddingQuality
    golden: tuple[GoldenEmbedding, ...] = ()
    max_unknown_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.1
    languages: tuple[str, ...] = ("en",)


class AucInterval(msgspec.Struct, frozen=True, kw_only=True):
    """Area under the ROC curve, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class DifficultyQuality(msgspec.Struct, frozen=True, kw_only=True):
    """What predictions for prompts left out of the fit were worth.

    Attributes:
        rows: Labelled prompts.
        wrong_share: Of them that the model answered wrongly, 0..1.
        folds: In which they were left out; like prompts always together.
        auc: Of the model: how often it ranks a prompt answered wrongly above one answered rightly.
        auc_length: Of the number of characters alone, fitted in the same folds.
        auc_random: Of seeded noise: what no knowledge looks like in an interval.
        gain: `auc` minus `auc_length`, on the same resampled prompts.
        brier: Mean squared error of the calibrated probabilities.
        calibration_error: Mean distance of predicted and seen shares over ten equal groups.
    """

    rows: int
    wrong_share: float
    folds: int
    auc: AucInterval
    auc_length: AucInterval
    auc_random: AucInterval
    gain: AucInterval
    brier: float
    calibration_error: float


class DifficultyManifest(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="difficulty"
):
    """A logistic model of the probability that a language model answers a prompt wrongly.

    log-odds = bias + sum(weights x (feature - mean) / scale), plus, where the prompt's embedding is
    known, embedding_bias + sum(embedding_weights x embedding); then the probability is
    1 / (1 + exp(-(slope x log-odds + offset))).

    Attributes:
        model: Whose answers it was fitted on; None: not said.
        data_sha256: Of the labelled prompts.
        feature_version: Of `fleet_protocol.prompt_features`; another one does not fit.
        weights: One a feature, for features made equal in spread.
        embedding: Name of the embedding artefact it needs beside the features; None: none.
        embedding_version: Of that artefact.
        embedding_weights: float32, little-endian; base64 in JSON.
        embedding_bias: Makes the embedding's part 0 for an average prompt.
        slope: Of the calibration.
        offset: Of the calibration.
    """

    format: int = MANIFEST_FORMAT
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    model: str | None = None
    data_sha256: str
    feature_version: int
    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[Annotated[float, msgspec.Meta(gt=0)], ...]
    weights: tuple[float, ...]
    bias: float
    embedding: str | None = None
    embedding_version: str | None = None
    embedding_weights: bytes = b""
    embedding_bias: float = 0.0
    slope: float = 1.0
    offset: float = 0.0
    quality: DifficultyQuality
