"""The tiny model with a liking for calculations: what it says follows the token before.

Its random weights still decide among what follows, so that an answer depends on all of its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tokenizers import Tokenizer

from edge_worker.adapters.artefact import Artefact
from tests.contract import tiny_model

MARKS = ("<<", ">>")
DIGITS, SIGNS = "0123456789", "+-*"
CHATTER = {
    **dict.fromkeys(("<<", *SIGNS), DIGITS),
    **dict.fromkeys(DIGITS, (*DIGITS, *SIGNS, "|")),
    ">>": ("the", "Ġa", "<|im_end|>", "<<", "1"),
    "the": ("<<", "Ġt", "he"),
    "Ġa": ("<<", "in", "<|im_end|>"),
}
"""After a token, one of these; whatever else may come, a calculation never ends by itself."""
_SURE = 40.0
_LIKELY = 7.0


def script(*tokens: str) -> dict[str, tuple[str, ...]]:
    """Return what makes a model say these tokens and nothing else; each of them but once."""
    return {one: (other,) for one, other in pairwise(tokens)}


def build_artefact(
    folder: Path, follows: Mapping[str, object] = CHATTER, *, calculates: bool = True
) -> Artefact:
    """Write an artefact into `folder` and return it, verified.

    Args:
        folder: Of the artefact.
        follows: By token, those that may follow it; after any other one all, mostly a mark.
        calculates: What the manifest says.
    """
    tokenizer = tiny_model.build_tokenizer((*tiny_model.WORDS, *MARKS))
    vocab = tokenizer.get_vocab_size()
    graph = tiny_model.build_graph(tiny_model.printable_tokens(tokenizer), vocab=vocab, seed=7)
    _prefer(graph, _table(tokenizer, follows))
    return tiny_model.write_artefact(folder, tokenizer, graph, calculates=calculates)


def _table(tokenizer: Tokenizer, follows: Mapping[str, object]) -> np.ndarray:
    table = np.zeros((tokenizer.get_vocab_size(),) * 2, np.float32)
    table[:, tokenizer.token_to_id("<<")] = _LIKELY
    for name, others in follows.items():
        for other in others:  # type: ignore[attr-defined]  # a string or a tuple of them
            # Or most expressions would never come to their end.
            liking = _SURE + 5 * (other == "|")
            table[tokenizer.token_to_id(name), tokenizer.token_to_id(other)] = liking
    return table


def _prefer(graph: onnx.ModelProto, table: np.ndarray) -> None:
    """Add a table [vocab, vocab] of what follows a token to the logits."""
    nodes = graph.graph.node
    (head,) = (node for node in nodes if "logits" in node.output)
    head.output[0] = "raw"
    graph.graph.initializer.append(numpy_helper.from_array(table, "table"))
    nodes.append(helper.make_node("Slice", ["input_ids", "start", "end", "axis"], ["last_ids"]))
    nodes.append(helper.make_node("Gather", ["table", "last_ids"], ["preferred"]))
    nodes.append(helper.make_node("Add", ["raw", "preferred"], ["logits"]))
