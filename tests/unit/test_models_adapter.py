"""An adapter, a pruned student and an own prompt change exactly what they say."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fleet_protocol.manifest import Manifest
from models.artefacts.build import Build
from models.cache import FactoryCache, hash_file
from models.catalog import AdapterSource, Layers, Prompt, Recipe
from models.checkpoints.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdaptedCheckpoint,
    Adapter,
    adapter_folder,
)
from models.checkpoints.checkpoint import Float32Array
from models.checkpoints.tiny import TinyCheckpoint, tiny_entry, write_tiny_gguf
from models.checkpoints.weights import PrunedCheckpoint
from models.errors import CheckpointError, ChecksumError, RecipeError
from models.graphs.reference import reference_logits
from models.progress import SilentProgress
from models.proof.verify import read_manifest

_RANK = 4
_PLAIN = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 8, "bias": "none"}
_Q = "base_model.model.model.layers.0.self_attn.q_proj"
_DOWN = "base_model.model.model.layers.1.mlp.down_proj"


def halves(stored: str, outputs: int, inputs: int) -> dict[str, Float32Array]:
    random = np.random.default_rng(len(stored))
    return {
        f"{stored}.lora_A.weight": random.standard_normal((_RANK, inputs)).astype(np.float16),
        f"{stored}.lora_B.weight": random.standard_normal((outputs, _RANK)).astype(np.float16),
    }


def write_adapter(folder: Path, tensors: dict[str, Float32Array], **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(_PLAIN | config))
    header: dict[str, object] = {}
    data = b""
    for name, tensor in tensors.items():
        place = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": place}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    (folder / ADAPTER_WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


@pytest.fixture
def tensors() -> dict[str, Float32Array]:
    return halves(_Q, 64, 64) | halves(_DOWN, 64, 96)


def test_only_the_named_matrices_change_by_the_scaled_product(
    tmp_path: Path, tensors: dict[str, Float32Array]
) -> None:
    checkpoint = TinyCheckpoint()
    adapted = AdaptedCheckpoint(checkpoint, Adapter(write_adapter(tmp_path, tensors)))
    for name, weight in checkpoint.weights.items():
        stored = {"layers.0.q": _Q, "layers.1.down": _DOWN}.get(name)
        wanted = weight
        if stored is not None:
            down = tensors[f"{stored}.lora_A.weight"].astype(np.float64)
            up = tensors[f"{stored}.lora_B.weight"].astype(np.float64)
            wanted = weight + 8 / _RANK * (up @ down)
        np.testing.assert_array_equal(adapted.weight(name), wanted.astype(np.float32))
    assert adapted.weight("layers.0.q").dtype == np.float32


def test_a_rank_stabilised_adapter_has_the_root_of_the_rank(
    tmp_path: Path, tensors: dict[str, Float32Array]
) -> None:
    assert Adapter(write_adapter(tmp_path, tensors, use_rslora=True)).scale == 8 / _RANK**0.5


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"bias": "all"},
        {"fan_in_fan_out": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]},
        {"r": 0},
        {"r": "four"},
    ],
)
def test_what_is_more_than_plain_lora_is_refused(
    tmp_path: Path, tensors: dict[str, Float32Array], config: dict[str, object]
) -> None:
    with pytest.raises(CheckpointError):
        Adapter(write_adapter(tmp_path, tensors, **config))


@pytest.mark.parametrize(
    "wrong",
    [
        halves(_Q, 64, 96),
        halves(_Q, 96, 64),
        halves(_Q.replace("layers.0", "layers.2"), 64, 64),
        halves("base_model.model.lm_head", 64, 64),
        halves(_Q.replace("q_proj", "rotary"), 64, 64),
        dict([halves(_Q, 64, 64).popitem()]),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, wrong: dict[str, Float32Array]
) -> None:
    with pytest.raises(CheckpointError):
        AdaptedCheckpoint(TinyCheckpoint(), Adapter(write_adapter(tmp_path, wrong))).weight(
            "layers.0.q"
        )


def test_a_missing_adapter_and_other_bytes_are_named(
    tmp_path: Path, tensors: dict[str, Float32Array]
) -> None:
    with pytest.raises(CheckpointError, match="models distill"):
        raise_with_hint(AdapterSource(path=str(tmp_path / "none")))
    folder = write_adapter(tmp_path / "there", tensors)
    digest = hash_file(folder / ADAPTER_WEIGHTS)
    assert adapter_folder(AdapterSource(path=str(folder), sha256=digest)) == folder
    with pytest.raises(ChecksumError, match=digest):
        adapter_folder(AdapterSource(path=str(folder), sha256="0" * 64))


def raise_with_hint(source: AdapterSource) -> None:
    try:
        adapter_folder(source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: {error.hint}") from error


def test_a_pruned_student_has_the_kept_layers_counted_anew() -> None:
    checkpoint = TinyCheckpoint()
    pruned = PrunedCheckpoint(checkpoint, (1,))
    assert pruned.shape.layers == 1
    assert np.array_equal(pruned.weight("layers.0.q"), checkpoint.weight("layers.1.q"))
    assert np.array_equal(pruned.weight("embedding"), checkpoint.weight("embedding"))
    assert reference_logits(pruned, [3, 5]).shape == (2, checkpoint.shape.vocab)


@pytest.mark.parametrize("keep", [(0, 2), (1, 0), (0, 0)])
def test_layers_that_are_not_there_or_out_of_order_are_refused(keep: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="0 to 1"):
        PrunedCheckpoint(TinyCheckpoint(), keep)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyCheckpoint())
    return tiny_entry(tmp_path / "tiny.gguf")


def built(recipe: Recipe, tmp_path: Path, **changes: object) -> Manifest:
    changed = msgspec.structs.replace(recipe, **changes)
    report = Build(changed, FactoryCache(tmp_path / "cache"), SilentProgress()).run()
    return read_manifest(Path(report.path))


def test_a_build_merges_the_adapter_prunes_and_says_so(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", halves(_Q, 64, 64))
    source = AdapterSource(path=str(folder), sha256=hash_file(folder / ADAPTER_WEIGHTS))
    plain = built(recipe, tmp_path)
    merged = built(recipe, tmp_path, adapter=source)
    pruned = built(recipe, tmp_path, adapter=source, layers=Layers(keep=(1,)))
    assert (plain.architecture.layers, pruned.architecture.layers) == (2, 1)
    assert len({manifest.files for manifest in (plain, merged, pruned)}) == 3
    write_adapter(folder, {name: tensor * 2 for name, tensor in halves(_Q, 64, 64).items()})
    unpinned = built(recipe, tmp_path, adapter=AdapterSource(path=str(folder)))
    assert unpinned.files != merged.files
    assert unpinned.version.startswith("1.0.0+")
    assert unpinned.version not in {plain.version, merged.version}


def test_a_recipe_may_replace_the_chat_template(recipe: Recipe, tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    manifest = built(recipe, tmp_path, prompt=Prompt(chat_template=template))
    assert manifest.chat_template == template
    assert manifest.golden[0].prompt_tokens < built(recipe, tmp_path).golden[0].prompt_tokens


def test_what_the_recipe_says_of_its_answers_is_in_the_manifest(
    recipe: Recipe, tmp_path: Path
) -> None:
    manifest = built(recipe, tmp_path, refusals=("No.",), calculates=True)
    assert (manifest.refusals, manifest.calculates) == (("No.",), True)
    assert not built(recipe, tmp_path).calculates
