"""Proof that an artefact works: its bytes, its graph, its golden prompts, its distance to fp32."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
from tokenizers import Tokenizer

from fleet_protocol.manifest import MANIFEST_NAME, Architecture, GoldenPrompt, Manifest
from models.cache import hash_file
from models.catalog import GoldenCheck, Recipe
from models.checkpoints.chat import PromptEncoder
from models.checkpoints.checkpoint import Checkpoint, Float32Array, TextParts
from models.errors import VerificationError
from models.graphs.reference import reference_logits
from models.graphs.variants import max_mean_kl_nats
from models.progress import Progress
from models.proof.calculations import AnswerReader
from models.proof.measure import Measurement, measure
from models.proof.runner import Answer, GraphRunner, log_softmax

GOLDEN_ANSWER_TOKENS: Final = 24
GOLDEN_PINNED_TOKENS: Final = 8
# Another CPU rounds differently and may turn a narrow decision round; only clear ones are pinned.
# Between 8-bit graphs of one model, logits were seen to move by a few tenths.
CLEAR_MARGIN_NATS: Final = 0.5
# Positions at which the graph is compared with the weights it was made from.
_COMPARED_TOKENS: Final = 40


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """How far the graph's next-token distributions are from those of the weights it came from.

    Attributes:
        mean_kl_nats: Kullback-Leibler divergence, mean over positions.
        top1_share: Share of positions with the same most probable token, 0..1.
        positions: How many were compared.
    """

    mean_kl_nats: float
    top1_share: float
    positions: int


class VerifiedVariant(msgspec.Struct, frozen=True, kw_only=True):
    """What one graph is worth.

    Attributes:
        drifted: Golden prompts that it answers in other words than recorded.
    """

    name: str
    fidelity: Fidelity
    measured: Measurement
    drifted: tuple[str, ...]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a build's graphs before they are packed.

    Attributes:
        source_licence: As the source states it.
        golden: The default graph's answers.
        variants: In the recipe's order.
    """

    opset: int
    source_licence: str | None = None
    parameters: int
    context_tokens: int
    architecture: Architecture
    golden: tuple[GoldenPrompt, ...]
    variants: tuple[VerifiedVariant, ...]


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found.

    Attributes:
        drifted: Golden prompts whose tokens differ from the recorded ones on this CPU although
            the text is right.
    """

    name: str
    version: str
    path: str
    size_bytes: int
    opset: int
    load_s: float
    golden: tuple[GoldenPrompt, ...]
    drifted: tuple[str, ...] = ()


def verify_artefact(folder: Path) -> VerifyReport:
    """Check a packed artefact against its own manifest.

    Raises:
        VerificationError: A file is missing or damaged, or a golden prompt is answered wrongly.
    """
    manifest = read_manifest(folder)
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file():
            raise _damaged(f"{file.path} is missing")
        if hash_file(path) != file.sha256:
            raise _damaged(f"{file.path} is not the file that the manifest describes")
    graphs = (manifest.graph, *(variant.graph for variant in manifest.variants))
    for graph in graphs:
        opset = graph_opset(folder / graph)
        if opset != manifest.opset:
            raise _damaged(f"{graph} is of opset {opset}, the manifest says {manifest.opset}")
    started = time.perf_counter()
    runner = GraphRunner(folder / manifest.graph, manifest.architecture)
    load_s = time.perf_counter() - started
    text = text_of(folder, manifest)
    reader = AnswerReader(Tokenizer.from_str(text.tokenizer_json), calculates=manifest.calculates)
    answers, drifted = ask_golden(runner, text, _recorded(manifest), reader=reader)
    for graph in graphs[1:]:
        GraphRunner(folder / graph, manifest.architecture).prefill([0])
    return VerifyReport(
        name=manifest.name,
        version=manifest.version,
        path=str(folder),
        size_bytes=sum(file.size_bytes for file in manifest.files),
        opset=manifest.opset,
        load_s=round(load_s, 3),
        golden=answers,
        drifted=drifted,
    )


def text_of(folder: Path, manifest: Manifest) -> TextParts:
    """Return an artefact's tokenizer and chat template."""
    return TextParts(
        tokenizer_json=(folder / manifest.tokenizer).read_text("utf-8"),
        chat_template=manifest.chat_template,
        stop_tokens=manifest.stop_tokens,
    )


def _recorded(manifest: Manifest) -> list[GoldenCheck]:
    return [
        GoldenCheck(
            prompt=golden.messages[-1][1],
            prompt_tokens=golden.prompt_tokens,
            tokens=golden.expect_tokens,
        )
        for golden in manifest.golden
    ]


def verify_variants(
    recipe: Recipe,
    graphs: dict[str, Path],
    checkpoint: Checkpoint,
    text: TextParts,
    progress: Progress,
) -> Verified:
    """Prove a build's graphs before they are packed.

    Args:
        recipe: What was built.
        graphs: By the variant's name.
        checkpoint: The unquantised weights.
        text: The tokenizer and the chat template.
        progress: Told about each graph.

    Raises:
        VerificationError: The default graph answers a golden prompt wrongly, or a graph is further
            from its weights than its number format explains.
    """
    shape, architecture = checkpoint.shape, architecture_of(checkpoint)
    checks = list(recipe.golden)
    prompt = PromptEncoder(text).encode(checks[0].prompt if checks else "Hello")
    tokens = prompt[:_COMPARED_TOKENS]
    exact = reference_logits(checkpoint, tokens)
    reader = AnswerReader(Tokenizer.from_str(text.tokenizer_json), calculates=recipe.calculates)
    golden: tuple[GoldenPrompt, ...] = ()
    found: list[VerifiedVariant] = []
    for variant in recipe.variants:
        progress.step("verify", variant.name)
        graph = graphs[variant.name]
        runner = GraphRunner(graph, architecture)
        said, drifted = ask_golden(runner, text, checks, reader=reader, is_strict=not found)
        golden = golden or said
        found.append(
            VerifiedVariant(
                name=variant.name,
                fidelity=compare(runner, tokens, exact, max_kl=max_mean_kl_nats(variant.scheme)),
                measured=measure(graph, architecture, context_tokens=shape.context_tokens),
                drifted=drifted,
            )
        )
    return Verified(
        opset=max(graph_opset(graph) for graph in graphs.values()),
        parameters=shape.parameters(),
        context_tokens=shape.context_tokens,
        architecture=architecture,
        golden=golden,
        variants=tuple(found),
    )


def read_manifest(folder: Path) -> Manifest:
    """Read an artefact's manifest; raises VerificationError."""
    path = folder / MANIFEST_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise VerificationError(
            f"{folder} is not an artefact: no readable {MANIFEST_NAME}",
            hint="name a folder that `python -m models build` made",
        ) from error
    except msgspec.DecodeError as error:
        raise _damaged(f"{MANIFEST_NAME}: {error}") from error


def graph_opset(graph: Path) -> int:
    """Check the graph's structure and return its opset of the default domain."""
    try:
        model = onnx.load_model(str(graph), load_external_data=False)
        onnx.checker.check_model(str(graph))
    except Exception as error:
        # onnx raises protobuf's, its checker's and the system's errors, without a common base.
        raise _damaged(f"{graph.name} is not a sound ONNX graph: {error}") from error
    return int(next(item.version for item in model.opset_import if not item.domain))


def ask_golden(
    runner: GraphRunner,
    text: TextParts,
    checks: Sequence[GoldenCheck],
    *,
    reader: AnswerReader,
    is_strict: bool = True,
) -> tuple[tuple[GoldenPrompt, ...], tuple[str, ...]]:
    """Put the golden prompts; return the answers, and which of them drifted.

    Args:
        runner: The graph.
        text: Its tokenizer and chat template.
        checks: What to ask.
        reader: Puts results into its answers, and says what of them is shown.
        is_strict: Refuse an answer that differs and lacks the expected text.

    Raises:
        VerificationError: Other prompt tokens than recorded, or neither the recorded first
            tokens nor the expected text.
    """
    encoder = PromptEncoder(text)
    answers: list[GoldenPrompt] = []
    drifted: list[str] = []
    for check in checks:
        messages = (("user", check.prompt),)
        prompt = encoder.encode(check.prompt)
        if check.prompt_tokens not in {None, len(prompt)}:
            raise _wrong(check, f"{len(prompt)} prompt tokens, not {check.prompt_tokens}")
        answer = runner.answer(
            prompt,
            max_tokens=GOLDEN_ANSWER_TOKENS,
            stops=text.stop_tokens,
            guide=reader.guide(),
        )
        said = reader.read(answer.tokens).text
        if _differs(check, answer.tokens):
            if is_strict and (check.contains is None or check.contains not in said):
                raise _wrong(check, f"the answer was {said!r}")
            drifted.append(check.prompt)
        asked = GoldenPrompt(
            messages=messages, prompt_tokens=len(prompt), expect_tokens=(), expect_text=""
        )
        answers.append(promise(asked, clear_tokens(answer, reader), reader))
    return tuple(answers), tuple(drifted)


def promise(golden: GoldenPrompt, tokens: tuple[int, ...], reader: AnswerReader) -> GoldenPrompt:
    """Return a golden prompt with other first tokens of its answer."""
    shown = reader.read(tokens)
    return msgspec.structs.replace(
        golden,
        expect_tokens=tokens,
        expect_text=shown.text,
        hidden_tokens=shown.hidden_tokens,
    )


def clear_tokens(answer: Answer, reader: AnswerReader) -> tuple[int, ...]:
    """Return the first tokens of an answer, up to where a decision was narrow."""
    clear = takewhile(lambda margin: margin >= CLEAR_MARGIN_NATS, answer.margins)
    return reader.begin_of(answer.tokens[: len(list(clear))], most=GOLDEN_PINNED_TOKENS)


def compare(
    runner: GraphRunner, tokens: Sequence[int], exact: Float32Array, *, max_kl: float
) -> Fidelity:
    """Compare the graph, one token at a time, with logits [tokens, vocab] of its weights.

    Raises:
        VerificationError: They are further apart than `max_kl` nats, which its number format
            explains.
    """
    wanted = log_softmax(exact)
    steps = [runner.step(np.array([[token]]), [past])[0] for past, token in enumerate(tokens)]
    ours = log_softmax(np.stack(steps))
    mean_kl = float((np.exp(wanted) * (wanted - ours)).sum(axis=-1).mean())
    fidelity = Fidelity(
        mean_kl_nats=round(mean_kl, 5),
        top1_share=round(float((wanted.argmax(-1) == ours.argmax(-1)).mean()), 3),
        positions=len(tokens),
    )
    if not mean_kl <= max_kl:
        raise VerificationError(
            f"the graph is {mean_kl:.3f} nats from its weights, more than {max_kl}",
            hint="the checkpoint may need smaller blocks; try one of half the block size",
        )
    return fidelity


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """Return what an engine must allocate for."""
    shape = checkpoint.shape
    return Architecture(
        layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, vocab=shape.vocab
    )


def _differs(check: GoldenCheck, tokens: tuple[int, ...]) -> bool:
    return check.tokens != tokens[: len(check.tokens)]


def _wrong(check: GoldenCheck, what: str) -> VerificationError:
    return VerificationError(
        f"golden prompt {check.prompt!r}: {what}",
        hint="build again with --force; if it stays, this CPU computes the graph wrongly",
    )


def _damaged(what: str) -> VerificationError:
    return VerificationError(what, hint="build the artefact again with --force")
