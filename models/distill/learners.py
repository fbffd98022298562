"""What of a model learns: narrow matrices beside its projections, or the projections themselves.

Either ends as an adapter: pairs of narrow matrices that stand for the change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

from models.checkpoints.adapter import tensor_name, tensor_of
from models.checkpoints.checkpoint import layer_weight
from models.checkpoints.hf_config import PROJECTIONS
from models.distill.cut import cut_change
from models.distill.low_rank import LowRank, module_name
from models.distill.plan import Training
from models.errors import CheckpointError


class Learner(Protocol):
    """What of a model learns.

    Attributes:
        decoder: The transformers causal model, with what it has learnt so far.
        learnt: The parameters that learn.
    """

    decoder: Any
    learnt: list[Any]

    def unlearnt(self) -> AbstractContextManager[None]:
        """Within it, the decoder is as it was before."""

    def change(self, sample: Sequence[tuple[Any, Any]]) -> LowRank:
        """Return what was learnt, as an adapter.

        Args:
            sample: Token ids and masks, each [rows, longest], of what the model reads.
        """


def make_learner(model: Any, training: Training, begin: LowRank | None) -> Learner:
    """Return the one that a plan asks for; what it begins with is taken as learnt.

    Raises:
        CheckpointError: The adapter to begin with does not fit the model.
    """
    kind = WholeLearner if training.whole else NarrowLearner
    return kind(model, training, begin)


class NarrowLearner:
    """LoRA: two narrow matrices beside each projection learn, the checkpoint stays as it is.

    Those of an adapter, where it begins with one: of its matrices, each of its own rank.
    """

    def __init__(self, model: Any, training: Training, begin: LowRank | None) -> None:
        self._scale = training.alpha / training.rank
        learning = _upper(model, training)
        if begin is None:
            ranks = {
                layer_weight(layer, part): training.rank
                for layer in learning
                for part in PROJECTIONS
            }
        else:
            _refuse_misfit(begin, _projections(model))
            ranks = {name: len(down) for name, (down, _) in begin.items()}
        by_module = {module_name(name): rank for name, rank in ranks.items()}
        config = LoraConfig(
            r=training.rank,
            lora_alpha=training.alpha,
            target_modules=list(by_module),
            rank_pattern=by_module,
            alpha_pattern={module: self._scale * rank for module, rank in by_module.items()},
            task_type="CAUSAL_LM",
        )
        self._model = get_peft_model(model, config)
        self.decoder = self._model.get_base_model()
        if begin is not None:
            self._take(begin)
        for stored, part in self._model.named_parameters():
            if part.requires_grad:
                part.requires_grad_(_layer(tensor_of(stored)[0]) in learning)
        self.learnt = [part for part in self._model.parameters() if part.requires_grad]

    def unlearnt(self) -> AbstractContextManager[None]:
        """Leave the narrow matrices out."""
        without: AbstractContextManager[None] = self._model.disable_adapter()
        return without

    def _take(self, adapter: LowRank) -> None:
        """Take its values as the first ones."""
        theirs = {}
        for name, (down, up) in adapter.items():
            theirs[tensor_name(name, "A")] = torch.from_numpy(down)
            theirs[tensor_name(name, "B")] = torch.from_numpy(up / self._scale)
        set_peft_model_state_dict(self._model, theirs)

    def change(self, sample: Sequence[tuple[Any, Any]]) -> LowRank:
        """Return the pairs as they are; nothing is asked of the sample."""
        del sample
        halves: dict[str, dict[str, Any]] = {}
        for stored, tensor in get_peft_model_state_dict(self._model).items():
            name, half = tensor_of(stored)
            halves.setdefault(name, {})[half] = tensor.detach().float().numpy()
        scale = np.float32(self._scale)
        return {name: (pair["A"], pair["B"] * scale) for name, pair in halves.items()}


class WholeLearner:
    """The projections themselves learn; what changed is cut to a rank in the end.

    From the same examples they learn more than narrow matrices beside them do, for four times the
    memory. The lower layers stay as they are where the plan says so, and need no gradients.
    """

    def __init__(self, model: Any, training: Training, begin: LowRank | None) -> None:
        self.decoder = model.requires_grad_(requires_grad=False)
        self._rank = training.rank
        self._modules = _projections(model)
        self._first = {name: _weight(module).clone() for name, module in self._modules.items()}
        if begin is not None:
            _refuse_misfit(begin, self._modules)
            for name, (down, up) in begin.items():
                _weight(self._modules[name]).add_(torch.from_numpy(up @ down))
        learning = _upper(model, training)
        for name, module in self._modules.items():
            module.weight.requires_grad_(_layer(name) in learning)
        self.learnt = [part for part in model.parameters() if part.requires_grad]

    @contextmanager
    def unlearnt(self) -> Iterator[None]:
        """Put the first weights in, for as long as it takes."""
        now = {name: module.weight.data for name, module in self._modules.items()}
        for name, module in self._modules.items():
            module.weight.data = self._first[name]
        try:
            yield
        finally:
            for name, module in self._modules.items():
                module.weight.data = now[name]

    def change(self, sample: Sequence[tuple[Any, Any]]) -> LowRank:
        """Cut the change of every matrix to the rank, by what the sample sends through it."""
        changed = {
            name: module
            for name, module in self._modules.items()
            if not torch.equal(_weight(module), self._first[name])
        }
        powers = self._powers(changed, sample)
        return {
            name: cut_change(
                (_weight(module) - self._first[name]).numpy(),
                powers[name].double().numpy(),
                self._rank,
            )
            for name, module in changed.items()
        }

    def _powers(
        self, modules: Mapping[str, Any], sample: Sequence[tuple[Any, Any]]
    ) -> dict[str, Any]:
        """Return the mean of x x^T over the inputs x of each of these matrices."""
        powers: dict[str, Any] = {
            name: torch.zeros(module.in_features, module.in_features)
            for name, module in modules.items()
        }
        read = torch.empty(0, dtype=torch.bool)

        def add(name: str, inputs: tuple[Any, ...]) -> None:
            told = inputs[0].flatten(0, -2)[read.flatten()]
            powers[name] += told.T @ told

        hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs))
            for name, module in modules.items()
        ]
        count = 0
        with torch.no_grad():
            for ids, mask in sample:
                read = mask.bool()
                count += int(read.sum())
                self.decoder.model(input_ids=ids, attention_mask=mask)
        for hook in hooks:
            hook.remove()
        return {name: power / max(1, count) for name, power in powers.items()}


def _upper(model: Any, training: Training) -> range:
    """Return the layers that learn."""
    count = model.config.num_hidden_layers
    learning = count if training.layers is None else min(count, training.layers)
    return range(count - learning, count)


def _projections(model: Any) -> dict[str, Any]:
    """Return the layers' linear modules by the canonical names of their matrices."""
    return {
        layer_weight(layer, part): model.model.layers[layer].get_submodule(module)
        for layer in range(model.config.num_hidden_layers)
        for part, module in PROJECTIONS.items()
    }


def _refuse_misfit(adapter: LowRank, modules: Mapping[str, Any]) -> None:
    for name, (down, up) in adapter.items():
        if name not in modules or modules[name].weight.shape != (len(up), down.shape[1]):
            raise CheckpointError(
                f"the adapter changes {name}, which the model has not in that shape",
                hint="name the adapter of this very checkpoint",
            )


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _weight(module: Any) -> Any:
    return module.weight.detach()
