"""The worker's engine answers with every supported family of decoders, which it knows nothing of.

What it says is compared with the numpy forward pass of the same rounded weights, which
`test_models_decoders` holds to transformers' logits. Answers are longer than the sliding windows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from edge_worker.adapters.artefact import Artefact, load_artefact
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from edge_worker.ports import Finished, GenerationRequest
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Generation
from models.checkpoints.safetensors_reader import FolderSource
from models.graphs.builder import GRAPH_NAME, WEIGHTS_NAME, GraphBuilder, save_graph
from models.graphs.products import ByteBlocks
from models.graphs.reference import RoundedCheckpoint, reference_logits
from models.progress import SilentProgress
from models.proof.verify import architecture_of, graph_opset
from tests.contract import tiny_model

DECODERS = Path(__file__).parents[1] / "data" / "decoders"
BLOCK = 32
ANSWER_TOKENS = 20
PROMPTS = {"short": slice(0, 3), "window": slice(2, 11), "long": slice(0, 26)}


def letter(token: int) -> str:
    """Every token is one character, so that an answer's text tells its tokens."""
    return chr(0x4E00 + token)


def letters_tokenizer(vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocab={letter(token): token for token in range(vocab)}, merges=[]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def build(source: FolderSource, folder: Path) -> Artefact:
    """Exact products, so that the forward pass foretells every token."""
    products = ByteBlocks(block=BLOCK, has_integer_inputs=False)
    save_graph(GraphBuilder(source, block=BLOCK, products=products).build(SilentProgress()), folder)
    letters_tokenizer(source.shape.vocab).save(str(folder / "tokenizer.json"))
    names = (GRAPH_NAME, WEIGHTS_NAME, "tokenizer.json")
    manifest = Manifest(
        name="family",
        version="1",
        graph=GRAPH_NAME,
        tokenizer="tokenizer.json",
        chat_template=tiny_model.TEMPLATE,
        context_tokens=64,
        memory_mb=1,
        stop_tokens=(),
        opset=graph_opset(folder / GRAPH_NAME),
        source="random",
        licence="Apache-2.0",
        quantization="int8 weight-only, block 32",
        architecture=architecture_of(source),
        files=tuple(tiny_model.describe(folder, name) for name in names),
    )
    tiny_model.write_manifest(folder, manifest)
    return load_artefact(folder)


def foretell(source: FolderSource, prompt: list[int]) -> list[int]:
    """Return the greedy answer of the forward pass."""
    rounded, tokens = RoundedCheckpoint(source, block=BLOCK), list(prompt)
    for _ in range(ANSWER_TOKENS):
        tokens.append(int(reference_logits(rounded, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_requests_in_one_batch_get_the_tokens_that_the_weights_foretell(
    family: str, tmp_path: Path
) -> None:
    source = FolderSource(DECODERS / family)
    artefact = build(source, tmp_path)
    engine = OnnxEngine(
        artefact, settings=EngineSettings(slots=2, intra_op_threads=1, prefill_chunk_tokens=8)
    )
    sequence: list[int] = np.load(DECODERS / family / "golden.npz")["token_ids"][0].tolist()
    prompts = {name: sequence[part] for name, part in PROMPTS.items()}
    for name, prompt in prompts.items():
        wanted = Generation(max_tokens=ANSWER_TOKENS)
        engine.add(GenerationRequest(id=name, prompt_tokens=tuple(prompt), generation=wanted))
    answers = {}
    while not engine.is_idle:
        answers |= {event.id: event for event in engine.step() if isinstance(event, Finished)}
    for name, prompt in prompts.items():
        assert answers[name].text == "".join(map(letter, foretell(source, prompt))), name
