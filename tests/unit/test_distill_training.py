"""Teaching an adapter, where torch and peft are installed (the extra `distill`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `distill` is not installed")
pytest.importorskip("peft", reason="the extra `distill` is not installed")

# They stand behind the question whether torch is here.
from models.checkpoints.adapter import AdaptedCheckpoint, Adapter  # noqa: E402
from models.checkpoints.checkpoint import Checkpoint, TextParts, layer_weight  # noqa: E402
from models.checkpoints.gguf_reader import GgufSource  # noqa: E402
from models.checkpoints.tiny import TinyCheckpoint, write_tiny_gguf  # noqa: E402
from models.distill.example import Example  # noqa: E402
from models.distill.lessons import Lesson, Lessons  # noqa: E402
from models.distill.low_rank import LowRank, read_low_rank  # noqa: E402
from models.distill.plan import Training  # noqa: E402
from models.distill.student import load_student  # noqa: E402
from models.distill.train import Trainer  # noqa: E402
from models.errors import CheckpointError  # noqa: E402
from models.graphs.reference import reference_logits  # noqa: E402
from models.progress import SilentProgress  # noqa: E402

EXAMPLES = [
    Example(family="colour", language="en", prompt=word, answer=answer)
    for word, answer in (("sky", "blue"), ("grass", "green"), ("snow", "white"))
]
TRAINING = Training(
    steps=30,
    step_tokens=128,
    rank=4,
    alpha=8,
    learning_rate=2e-2,
    warmup_steps=2,
    keep=(),
    save_every_steps=10,
)


WHOLE = msgspec.structs.replace(TRAINING, whole=True, learning_rate=4e-3, rank=12, layers=1)


def source(folder: Path) -> GgufSource:
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.gguf"
    write_tiny_gguf(path, TinyCheckpoint())
    return GgufSource(path)


def batches(text: TextParts, training: Training) -> Iterator[list[Lesson]]:
    return Lessons(text, training).batches(cycle(EXAMPLES))


def trainer(
    tmp_path: Path, folder: str, training: Training, begin: LowRank | None = None
) -> Trainer:
    student = load_student(source(tmp_path).checkpoint)
    return Trainer(student, training, tmp_path / folder, SilentProgress(), begin=begin)


def saved(tmp_path: Path, run: Trainer, name: str) -> Adapter:
    (tmp_path / name).mkdir()
    run.save_adapter(tmp_path / name)
    return Adapter(tmp_path / name)


def weights(tmp_path: Path, run: Trainer, name: str) -> AdaptedCheckpoint:
    adapter = saved(tmp_path, run, name)
    return AdaptedCheckpoint(source(tmp_path).checkpoint, adapter)


def random_pairs(checkpoint: Checkpoint, ranks: Mapping[str, int]) -> LowRank:
    random = np.random.default_rng(5)
    pairs = {}
    for name, rank in ranks.items():
        outputs, inputs = checkpoint.weight(name).shape
        down, up = random.standard_normal((rank, inputs)), random.standard_normal((outputs, rank))
        pairs[name] = ((down / 8).astype("f4"), (up / 8).astype("f4"))
    return pairs


def test_the_loss_falls(tmp_path: Path) -> None:
    run = trainer(tmp_path, "run", TRAINING)
    some = islice(batches(source(tmp_path).text_parts(), TRAINING), 30)

    losses = [run.update(batch) for batch in some]

    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    text = source(tmp_path).text_parts()
    whole = trainer(tmp_path, "whole", TRAINING)
    whole.run(batches(text, TRAINING))

    def cut() -> Iterator[list[Lesson]]:
        yield from islice(batches(text, TRAINING), 17)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, "cut", TRAINING).run(cut())
    resumed = trainer(tmp_path, "cut", TRAINING)
    resumed.run(batches(text, TRAINING))

    name = layer_weight(1, "down")
    ours = weights(tmp_path, resumed, "a").weight(name)
    np.testing.assert_allclose(ours, weights(tmp_path, whole, "b").weight(name), atol=1e-3)


def test_merged_without_torch_the_adapter_gives_the_logits_that_torch_gives(tmp_path: Path) -> None:
    run = trainer(tmp_path, "run", TRAINING)
    text = source(tmp_path).text_parts()
    run.run(batches(text, TRAINING))
    tokens = Lessons(text, TRAINING).lesson(EXAMPLES[0]).tokens

    merged = reference_logits(weights(tmp_path, run, "adapter"), tokens)

    ids = torch.tensor([tokens])
    with torch.no_grad():
        ours = run.decoder(input_ids=ids).logits[0].numpy()
    # The adapter is kept in 16 bits.
    np.testing.assert_allclose(merged, ours, atol=0.05)


@pytest.mark.parametrize("further", [TRAINING, WHOLE], ids=["narrow", "whole"])
def test_a_run_goes_on_from_an_adapter(tmp_path: Path, further: Training) -> None:
    text = source(tmp_path).text_parts()
    first = trainer(tmp_path, "first", TRAINING)
    first.run(batches(text, TRAINING))
    weights(tmp_path, first, "adapter")

    begin = read_low_rank(Adapter(tmp_path / "adapter"))
    second = trainer(tmp_path, "second", further, begin)

    batch = next(batches(text, TRAINING))
    assert second.update(batch) == pytest.approx(first.update(batch), abs=0.05)


@pytest.mark.parametrize("plan", [TRAINING, WHOLE], ids=["narrow", "whole"])
def test_what_is_kept_stays_closer_to_the_teacher(tmp_path: Path, plan: Training) -> None:
    text = source(tmp_path).text_parts()
    keeping = msgspec.structs.replace(plan, keep=("colour",), keep_weight=20.0)
    free, bound = trainer(tmp_path, "free", plan), trainer(tmp_path, "bound", keeping)
    free.run(batches(text, plan))
    bound.run(batches(text, keeping))

    name = layer_weight(1, "o")
    before = source(tmp_path).checkpoint.weight(name)
    moved = [
        float(np.abs(weights(tmp_path, run, kind).weight(name) - before).mean())
        for run, kind in ((free, "a"), (bound, "b"))
    ]
    assert moved[1] < moved[0]


@pytest.mark.parametrize("further", [TRAINING, WHOLE], ids=["narrow", "whole"])
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, further: Training) -> None:
    other = {layer_weight(0, "up"): (np.zeros((2, 3), "f4"), np.zeros((4, 2), "f4"))}

    with pytest.raises(CheckpointError, match=r"changes layers\.0\.up"):
        trainer(tmp_path, "run", further, other)


def test_the_matrices_of_an_adapter_learn_on_each_at_its_own_rank(tmp_path: Path) -> None:
    text = source(tmp_path).text_parts()
    ranks = {layer_weight(0, "up"): 2, layer_weight(1, "up"): 5, layer_weight(1, "o"): 1}
    begin = random_pairs(source(tmp_path).checkpoint, ranks)
    upper = msgspec.structs.replace(TRAINING, layers=1)

    run = trainer(tmp_path, "run", upper, begin)
    run.run(batches(text, upper))
    weights(tmp_path, run, "adapter")

    learnt = read_low_rank(Adapter(tmp_path / "adapter"))
    assert {name: len(down) for name, (down, _) in learnt.items()} == ranks
    moved = {
        name: float(np.abs(up @ down - begin[name][1] @ begin[name][0]).max())
        for name, (down, up) in learnt.items()
    }
    # In 16 bits; the lower layer was not to learn.
    assert moved[layer_weight(0, "up")] < 1e-3
    assert min(moved[layer_weight(1, "up")], moved[layer_weight(1, "o")]) > 1e-2


def test_whole_matrices_learn_and_end_as_an_adapter(tmp_path: Path) -> None:
    text = source(tmp_path).text_parts()
    run = trainer(tmp_path, "run", WHOLE)
    run.run(batches(text, WHOLE))
    tokens = Lessons(text, WHOLE).lesson(EXAMPLES[0]).tokens

    adapted = weights(tmp_path, run, "adapter")

    with torch.no_grad():
        ours = run.decoder(input_ids=torch.tensor([tokens])).logits[0].numpy()
    untaught = reference_logits(source(tmp_path).checkpoint, tokens)
    off = np.abs(reference_logits(adapted, tokens) - ours).max()
    assert off < 0.2 * np.abs(untaught - ours).max()
    # The lower layers were not to learn.
    name = layer_weight(0, "up")
    np.testing.assert_array_equal(
        adapted.weight(name), source(tmp_path).checkpoint.weight(name), strict=True
    )
