"""The default model as it was really built: it must be sound, small and answer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from fleet_protocol.manifest import DEFAULT_MODEL, CpuClass
from models.cache import cache_root
from models.catalog import load_catalog
from models.checkpoints.chat import PromptEncoder
from models.graphs.variants import graph_bytes
from models.proof.runner import GraphRunner
from models.proof.verify import read_manifest, text_of, verify_artefact

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def artefact() -> Path:
    entry = load_catalog().find(DEFAULT_MODEL)
    folder = cache_root(os.environ) / "models" / entry.name / entry.version
    if not (folder / "manifest.json").is_file():
        why = f"the default model is not built: python -m models build {DEFAULT_MODEL}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return folder


def test_the_built_model_is_sound_and_answers_its_golden_prompts(artefact: Path) -> None:
    report = verify_artefact(artefact)
    texts = {golden.messages[-1][1]: golden.expect_text for golden in report.golden}
    assert texts["What will the share price be tomorrow?"] == "I cannot answer that here."
    assert "100" in texts["At what temperature does water boil?"]


def test_the_graph_a_board_loads_takes_a_quarter_of_fp32_and_two_percent(artefact: Path) -> None:
    fp32_bytes = 134_515_008 * 4
    assert graph_bytes(artefact, read_manifest(artefact).graph) <= 0.27 * fp32_bytes


def test_one_graph_serves_every_processor(artefact: Path) -> None:
    manifest = read_manifest(artefact)
    assert (manifest.cpu_class, manifest.variants) == (CpuClass.BASELINE, ())


def encoder(artefact: Path) -> PromptEncoder:
    return PromptEncoder(text_of(artefact, read_manifest(artefact)))


def test_the_manifest_says_what_a_board_must_know(artefact: Path) -> None:
    manifest = read_manifest(artefact)
    assert manifest.context_tokens == 8192
    assert manifest.stop_tokens == (2,)
    assert manifest.licence == "Apache-2.0"
    assert 150 < manifest.memory_mb < 600
    assert 0 < manifest.routing.min_confidence < 1


def test_the_tokenizer_splits_digits_and_loses_nothing(artefact: Path) -> None:
    tokenizer = Tokenizer.from_file(str(artefact / "tokenizer.json"))
    text = "née 你好 🙂 <|im_start|>user\nTemperature is 23.5 °C at 2026-11-21<|im_end|>\n"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert [token for token in encoded.tokens if token.isdigit()] == list("23520261121")


def test_a_long_prompt_in_chunks_gives_what_it_gives_at_once(artefact: Path) -> None:
    manifest = read_manifest(artefact)
    prompt = encoder(artefact).encode("Summarise this. The pump in zone 3 stopped at 06:30. " * 10)
    runner = GraphRunner(artefact / manifest.graph, manifest.architecture)
    whole = runner.prefill(prompt, chunk=len(prompt))
    in_chunks = runner.prefill(prompt, chunk=64)
    np.testing.assert_allclose(in_chunks, whole, atol=1e-3)
