"""The graphs of an artefact, in files that share what is equal.

`dynamic-u8`: one scale an output and one a row of inputs; for every processor.
`int8-blockN`: 8-bit weights in blocks, inputs quantised block by block; needs 8-bit dot products.
`int4-blockN`: 4-bit weights, at half the bytes and a price in quality.
`-fp32` behind a block scheme keeps inputs in 32-bit floats.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

import onnx
from onnx.external_data_helper import set_external_data, uses_external_data

from models.catalog import VariantRecipe
from models.checkpoints.checkpoint import Checkpoint
from models.graphs.builder import GRAPH_NAME, WEIGHTS_NAME, GraphBuilder, save_graph
from models.graphs.products import ByteBlocks, NibbleBlocks, Products
from models.graphs.row_products import ByteRows
from models.progress import Progress

_BLOCKS: Final = re.compile(r"^int(4|8)-block(\d+)(-fp32)?$")
# The embedding's table is the default graph's, so that it need not be stored twice.
_TABLE_BLOCK: Final = 32
# Smaller ones stay in the graph's own file, as in `save_graph`.
_EXTERNAL_MIN_BYTES: Final = 1024
# A page: where the file can be mapped.
_ALIGNMENT_BYTES: Final = 4096
# Measured on SmolLM2 135M: 0.005, 0.007 and 0.5; wrong graphs are beyond 1.
_MAX_MEAN_KL_NATS: Final = {"int8": 0.05, "dynamic": 0.05, "int4": 1.0}


def products_of(scheme: str) -> Products:
    """Return how a graph of that scheme multiplies."""
    if scheme == "dynamic-u8":
        return ByteRows()
    bits, block, has_floats = _parse(scheme)
    kind = ByteBlocks if bits == 8 else NibbleBlocks
    return kind(block=block, has_integer_inputs=not has_floats)


def table_block(variants: tuple[VariantRecipe, ...]) -> int:
    """Return the block size of the embedding's table: of the first variant that has blocks."""
    blocks = (_parse(item.scheme)[1] for item in variants if item.scheme != "dynamic-u8")
    return next(blocks, _TABLE_BLOCK)


def max_mean_kl_nats(scheme: str) -> float:
    """Return how far a sound graph of that scheme may be from its weights."""
    return _MAX_MEAN_KL_NATS[scheme.partition("-")[0]]


def describe(scheme: str) -> str:
    """Return the scheme in words, for a manifest."""
    if scheme == "dynamic-u8":
        return "uint8 weights an output, uint8 inputs a row"
    bits, block, has_floats = _parse(scheme)
    return f"int{bits} weight-only, block {block}" + (", fp32 inputs" if has_floats else "")


def graph_name(variants: tuple[VariantRecipe, ...], variant: VariantRecipe) -> str:
    """Return the file of a variant's graph: the first one's is the artefact's own."""
    return GRAPH_NAME if variant == variants[0] else f"{variant.name}.onnx"


def write_variants(
    checkpoint: Checkpoint,
    variants: tuple[VariantRecipe, ...],
    folder: Path,
    progress: Progress,
) -> None:
    """Write every variant's graph into an empty folder; the same weights give the same bytes."""
    block = table_block(variants)
    for variant in variants:
        progress.step("quantize", f"{variant.name}: {describe(variant.scheme)}")
        builder = GraphBuilder(checkpoint, block=block, products=products_of(variant.scheme))
        model = builder.build(progress)
        if variant == variants[0]:
            save_graph(model, folder)
        else:
            _save_beside(model, folder, graph_name(variants, variant))


def graph_bytes(folder: Path, graph: str) -> int:
    """Return what a board loads for one graph: the graph, and the tensors that it names."""
    path = folder / graph
    model = onnx.load_model(str(path), load_external_data=False)
    lengths = (
        int(_external(tensor)["length"])
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
    )
    return path.stat().st_size + sum(lengths)


def _save_beside(model: onnx.ModelProto, folder: Path, name: str) -> None:
    """Write a graph whose tensors lie in the default graph's weights where they are equal."""
    shared = _stored_tensors(folder)
    data = f"{name}.data"
    with (folder / data).open("wb") as weights:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < _EXTERNAL_MIN_BYTES:
                continue
            location, offset = WEIGHTS_NAME, shared.get(_digest(tensor))
            if offset is None:
                weights.seek(-(-weights.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
                location, offset = data, weights.tell()
                weights.write(raw)
            set_external_data(tensor, location=location, offset=offset, length=len(raw))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
    (folder / name).write_bytes(model.SerializeToString(deterministic=True))


def _stored_tensors(folder: Path) -> dict[bytes, int]:
    """Return where the default graph's tensors lie in its weights, by what they are."""
    model = onnx.load_model(str(folder / GRAPH_NAME), load_external_data=False)
    found: dict[bytes, int] = {}
    with (folder / WEIGHTS_NAME).open("rb") as weights:
        for tensor in model.graph.initializer:
            if uses_external_data(tensor):
                place = _external(tensor)
                weights.seek(int(place["offset"]))
                tensor.raw_data = weights.read(int(place["length"]))
                found[_digest(tensor)] = int(place["offset"])
                tensor.ClearField("raw_data")
    return found


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {"offset": "0"} | {entry.key: entry.value for entry in tensor.external_data}


def _digest(tensor: onnx.TensorProto) -> bytes:
    what = f"{tensor.data_type} {list(tensor.dims)} ".encode()
    return hashlib.sha256(what + tensor.raw_data).digest()


def _parse(scheme: str) -> tuple[int, int, bool]:
    match = _BLOCKS.match(scheme)
    if match is None:
        raise ValueError(f"{scheme} is not a scheme of blocks")
    return int(match[1]), int(match[2]), match[3] is not None
