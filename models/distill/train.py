"""Teach a checkpoint examples: a LoRA adapter by supervised pairs and logit distillation.

The loss counts the answer's tokens only. For the families in `keep`, the answer's distributions
are also held close to those of a teacher: another model of the same vocabulary, or the checkpoint
itself without the adapter, so that what it knows is not forgotten. Needs torch and peft.

Sources: LoRA, arXiv 2106.09685; distillation by KL divergence, arXiv 1503.02531.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional

from fleet_protocol.calculation import BAR, CLOSING, OPENING
from models.chat import render_prompt
from models.checkpoint import TextParts
from models.distill.example import Example
from models.distill.plan import Training
from models.errors import CheckpointError
from models.progress import Progress

_IGNORED: Final = -100
_STATE_NAME: Final = "training.pt"
_ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
MATRICES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Lesson(msgspec.Struct, frozen=True):
    """An example in tokens.

    Attributes:
        learnt: Which tokens are to be said: the answer's and its end, but not the results of its
            calculations, which a worker puts in itself.
        keep: Whether its distributions are held close to the teacher's.
    """

    tokens: list[int]
    learnt: list[bool]
    keep: bool


def said_and_computed(answer: str) -> list[tuple[str, bool]]:
    """Return the pieces of an answer, and whether the model has to say each of them itself.

    A worker encodes the result of a calculation on its own, so it is a piece of its own here.
    """
    pieces: list[tuple[str, bool]] = []
    while OPENING in answer:
        said, bar, rest = answer.partition(BAR)
        computed, closing, answer = rest.partition(CLOSING)
        pieces += [(said + bar, True), (computed + closing, False)]
    return [*pieces, (answer, True)] if answer else pieces


class Lessons:
    """Examples as tokens, in batches of about the same length."""

    def __init__(self, text: TextParts, training: Training) -> None:
        self._tokenizer = Tokenizer.from_str(text.tokenizer_json)
        self._template = text.chat_template
        self._end = text.stop_tokens[0]
        self._training = training

    def lesson(self, example: Example) -> Lesson:
        """Return an example's tokens, written by the chat template as a worker does."""
        turns = [("user", example.prompt)]
        if example.system is not None:
            turns.insert(0, ("system", example.system))
        prompt = self._encode(render_prompt(self._template, turns))
        tokens, learnt = list(prompt), [False] * len(prompt)
        for text, is_said in said_and_computed(example.answer):
            part = self._encode(text)
            tokens += part
            learnt += [is_said] * len(part)
        keep = example.family in self._training.keep
        return Lesson([*tokens, self._end], [*learnt, True], keep)

    def batches(self, examples: Iterator[Example]) -> Iterator[list[Lesson]]:
        """Yield batches of about `step_tokens` tokens, padding counted."""
        chance = random.Random(self._training.seed)  # noqa: S311 - order, not secrets
        while True:
            pool = [self.lesson(next(examples)) for _ in range(1_024)]
            pool.sort(key=lambda lesson: len(lesson.tokens))
            batches: list[list[Lesson]] = [[]]
            for lesson in pool:
                if (len(batches[-1]) + 1) * len(lesson.tokens) > self._training.step_tokens:
                    batches.append([])
                batches[-1].append(lesson)
            chance.shuffle(batches)
            yield from batches

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class Trainer:
    """One run, which can be interrupted and goes on where it was saved.

    Attributes:
        model: With its adapter.
    """

    def __init__(
        self,
        model: Any,
        training: Training,
        folder: Path,
        progress: Progress,
        *,
        teacher: Any | None = None,
    ) -> None:
        """Wrap a transformers causal model.

        Args:
            model: Its weights stay as they are; the adapter learns.
            training: How.
            folder: Holds the state between runs, and in the end the adapter.
            progress: Told about every saved step.
            teacher: A transformers causal model of the same vocabulary; None: `model` itself
                without the adapter.
        """
        torch.manual_seed(training.seed)
        count = model.config.num_hidden_layers
        learning = None if training.layers is None else list(range(count - training.layers, count))
        config = LoraConfig(
            r=training.rank,
            lora_alpha=training.alpha,
            target_modules=list(MATRICES),
            layers_to_transform=learning,
            task_type="CAUSAL_LM",
        )
        self._training = training
        self._folder = folder
        self._progress = progress
        self.model = get_peft_model(model, config)
        self._teacher = teacher
        self._learnt = [part for part in self.model.parameters() if part.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._learnt, lr=training.learning_rate, weight_decay=0.0
        )
        self._step = 0

    def run(self, batches: Iterator[list[Lesson]]) -> None:
        """Do the steps that are left, and save the adapter."""
        self._resume(batches)
        while self._step < self._training.steps:
            started = time.perf_counter()
            tokens, losses = 0, []
            for batch in islice(batches, self._until_saved()):
                losses.append(self.update(batch))
                tokens += sum(len(lesson.tokens) for lesson in batch)
                self._progress.advance(self._step, self._training.steps)
            rate = tokens / (time.perf_counter() - started)
            loss = sum(losses) / len(losses)
            self._save()
            self._progress.step(
                "distill", f"step {self._step}: loss {loss:.4f}, {rate:.0f} tokens/s"
            )

    def _until_saved(self) -> int:
        every = self._training.save_every_steps
        return min(every - self._step % every, self._training.steps - self._step)

    def update(self, batch: Sequence[Lesson]) -> float:
        """Learn one batch; return its loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        ids, mask, labels = _pad(batch)
        logits, wanted, rows = _answers(self.model.get_base_model(), ids, mask, labels)
        loss = functional.cross_entropy(logits, wanted)
        kept = torch.tensor([lesson.keep for lesson in batch])[rows]
        if bool(kept.any()):
            loss = loss + self._training.keep_weight * self._distance(
                ids, mask, labels, logits, kept
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learnt, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return float(loss.detach())

    def _distance(self, ids: Any, mask: Any, labels: Any, logits: Any, kept: Any) -> Any:
        """Return the mean KL divergence from the teacher's distributions over the kept tokens."""
        with torch.no_grad():
            if self._teacher is not None:
                teacher, _, _ = _answers(self._teacher, ids, mask, labels)
            else:
                with self.model.disable_adapter():
                    decoder = self.model.get_base_model()
                    teacher, _, _ = _answers(decoder, ids, mask, labels)
        ours = functional.log_softmax(logits[kept], -1)
        theirs = functional.log_softmax(teacher[kept], -1)
        return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean") * (
            kept.float().mean()
        )

    def _rate(self) -> float:
        training = self._training
        if self._step < training.warmup_steps:
            return training.learning_rate * (self._step + 1) / training.warmup_steps
        share = (self._step - training.warmup_steps) / max(
            1, training.steps - training.warmup_steps
        )
        return training.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))

    def begin_with(self, folder: Path) -> None:
        """Take an adapter's values as the first ones; it must be of the same rank.

        Raises:
            CheckpointError: It is of another shape.
        """
        state = load_file(folder / _ADAPTER_WEIGHTS)
        wide = {name: tensor.float() for name, tensor in state.items()}
        try:
            set_peft_model_state_dict(self.model, wide)
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder} does not fit: {error}"[:500],
                hint="give [distill.training] the rank and layers of that adapter",
            ) from error

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as PEFT does, in 16-bit floats."""
        state = get_peft_model_state_dict(self.model)
        halves = {name: tensor.half().contiguous() for name, tensor in state.items()}
        save_file(halves, folder / _ADAPTER_WEIGHTS)
        self.model.peft_config["default"].save_pretrained(str(folder))

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{_STATE_NAME}.part"
        torch.save(
            {"step": self._step, "optimizer": self._optimizer.state_dict(), "learnt": self._learnt},
            partial,
        )
        partial.replace(self._folder / _STATE_NAME)

    def _resume(self, batches: Iterator[list[Lesson]]) -> None:
        path = self._folder / _STATE_NAME
        if not path.is_file():
            return
        state = torch.load(path, weights_only=False)
        self._step = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for part, saved in zip(self._learnt, state["learnt"], strict=True):
                part.copy_(saved)
        for _ in range(self._step):
            next(batches)


def _answers(decoder: Any, ids: Any, mask: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Return logits [answer tokens, vocab], what they should be, and each one's row.

    The head reads the answers' positions only: it is a fifth of a small model's work.
    """
    hidden = decoder.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    learnt = labels[:, 1:] != _IGNORED
    rows = learnt.nonzero()[:, 0]
    return decoder.lm_head(hidden[learnt]), labels[:, 1:][learnt], rows


def _pad(batch: Sequence[Lesson]) -> tuple[Any, Any, Any]:
    """Return token ids, mask and labels, each [rows, longest], padded at the end."""
    longest = max(len(lesson.tokens) for lesson in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full((len(batch), longest), _IGNORED, dtype=torch.long)
    for row, lesson in enumerate(batch):
        end = len(lesson.tokens)
        ids[row, :end] = torch.tensor(lesson.tokens)
        mask[row, :end] = 1
        learnt = torch.tensor(lesson.learnt)
        labels[row, :end][learnt] = ids[row, :end][learnt]
    return ids, mask, labels
