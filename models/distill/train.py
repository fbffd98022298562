"""Teach a checkpoint examples, by supervised pairs and logit distillation; it ends as an adapter.

The loss counts the answer's tokens only. For the families in `keep`, the answer's distributions
are also held close to those of a teacher: another model of the same vocabulary, or the checkpoint
itself as it was, so that what it knows is not forgotten. Needs torch and peft.

Sources: LoRA, arXiv 2106.09685; distillation by KL divergence, arXiv 1503.02531.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional

from models.distill.learners import make_learner
from models.distill.lessons import Lesson, split_by_length
from models.distill.low_rank import LowRank, write_adapter
from models.distill.plan import Training
from models.progress import Progress

_IGNORED: Final = -100
_STATE_NAME: Final = "training.pt"
_SAMPLED_BATCHES: Final = 24


class Trainer:
    """One run, which can be interrupted and goes on where it was saved."""

    def __init__(
        self,
        model: Any,
        training: Training,
        folder: Path,
        progress: Progress,
        *,
        begin: LowRank | None = None,
        teacher: Any | None = None,
    ) -> None:
        """Take a transformers causal model.

        Args:
            model: Becomes part of the run; load another one to have it untaught.
            training: How.
            folder: Holds the state between runs, and in the end the adapter.
            progress: Told about every saved step.
            begin: An adapter that is taken as learnt.
            teacher: A transformers causal model of the same vocabulary; None: `model` as it was.

        Raises:
            CheckpointError: The adapter to begin with does not fit the model.
        """
        torch.manual_seed(training.seed)
        self._training = training
        self._folder = folder
        self._progress = progress
        self._learner = make_learner(model, training, begin)
        self._teacher = teacher
        if teacher is not None:
            teacher.requires_grad_(requires_grad=False).eval()
        self._read: deque[Sequence[Lesson]] = deque(maxlen=_SAMPLED_BATCHES)
        self._optimizer = torch.optim.AdamW(
            self._learner.learnt, lr=training.learning_rate, weight_decay=0.0
        )
        self._step = 0

    @property
    def decoder(self) -> Any:
        """The transformers model, with what it has learnt so far."""
        return self._learner.decoder

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
        self._read.append(batch)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        whole = sum(sum(lesson.learnt) ** 0.5 for lesson in batch)
        total = 0.0
        for part in split_by_length(batch):
            loss = self._loss(part) / whole
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._learner.learnt, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return total

    def _loss(self, part: Sequence[Lesson]) -> Any:
        """Return the sum of the weighted losses of a part's answer tokens."""
        ids, mask, labels = _pad(part)
        logits, wanted, rows = _answers(self.decoder, ids, mask, labels)
        loss = _balanced_loss(logits, wanted, rows)
        kept = torch.tensor([lesson.keep for lesson in part])[rows]
        if bool(kept.any()):
            theirs = self._teachers_logits(ids, mask, labels)
            distance = _balanced_distance(logits, theirs, rows, kept)
            loss = loss + self._training.keep_weight * distance
        return loss

    def _teachers_logits(self, ids: Any, mask: Any, labels: Any) -> Any:
        """Return what the teacher would say to the answers' positions: [answer tokens, vocab]."""
        with torch.no_grad():
            if self._teacher is not None:
                return _answers(self._teacher, ids, mask, labels)[0]
            with self._learner.unlearnt():
                return _answers(self.decoder, ids, mask, labels)[0]

    def _rate(self) -> float:
        training = self._training
        if self._step < training.warmup_steps:
            return training.learning_rate * (self._step + 1) / training.warmup_steps
        share = (self._step - training.warmup_steps) / max(
            1, training.steps - training.warmup_steps
        )
        return training.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))

    def save_adapter(self, folder: Path) -> None:
        """Fill a folder with the two files of an adapter, as PEFT writes it."""
        parts = [part for batch in self._read for part in split_by_length(batch)]
        learnt = self._learner.change([_pad(part)[:2] for part in parts])
        scale = self._training.alpha / self._training.rank
        write_adapter(folder, learnt, scale=scale, megabytes=self._training.megabytes)

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{_STATE_NAME}.part"
        state = {
            "step": self._step,
            "optimizer": self._optimizer.state_dict(),
            "learnt": self._learner.learnt,
        }
        torch.save(state, partial)
        partial.replace(self._folder / _STATE_NAME)

    def _resume(self, batches: Iterator[list[Lesson]]) -> None:
        path = self._folder / _STATE_NAME
        if not path.is_file():
            return
        state = torch.load(path, weights_only=False)
        self._step = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for part, saved in zip(self._learner.learnt, state["learnt"], strict=True):
                part.copy_(saved)
        for _ in range(self._step):
            self._read.append(next(batches))


def _answers(decoder: Any, ids: Any, mask: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Return logits [answer tokens, vocab], what they should be, and each one's row.

    The head reads the answers' positions only: it is a fifth of a small model's work.
    """
    hidden = decoder.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    learnt = labels[:, 1:] != _IGNORED
    rows = learnt.nonzero()[:, 0]
    return decoder.lm_head(hidden[learnt]), labels[:, 1:][learnt], rows


def _balanced_loss(logits: Any, wanted: Any, rows: Any) -> Any:
    """Return the sum of the losses; a token counts one over the root of its answer's length.

    With equal tokens the forms of long answers drown out labels of one token: classification had
    a fiftieth of the gradient, and stayed at chance while the loss looked good.
    """
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    return (losses * _weights(rows)).sum()


def _balanced_distance(logits: Any, theirs: Any, rows: Any, kept: Any) -> Any:
    """Return the KL divergences from the teacher's distributions, summed over the kept tokens.

    Balanced as the loss is; a batch of which little is kept adds little.
    """
    ours = functional.log_softmax(logits[kept], -1)
    wanted = functional.log_softmax(theirs[kept], -1)
    distances = functional.kl_div(ours, wanted, log_target=True, reduction="none").sum(-1)
    return (distances * _weights(rows)[kept]).sum()


def _weights(rows: Any) -> Any:
    """Return what each answer token counts, [answer tokens]."""
    return torch.bincount(rows).float()[rows].rsqrt()


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
