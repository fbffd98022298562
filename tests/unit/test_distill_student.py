"""A student is its checkpoint in torch, whatever the family; with a teacher it ends as one adapter.

Where torch, transformers and peft are installed (the extra `distill`).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="the extra `distill` is not installed")
peft = pytest.importorskip("peft", reason="the extra `distill` is not installed")

# They stand behind the question whether torch is here.
from models.cache import FactoryCache  # noqa: E402
from models.catalog import AdapterSource, Layers, Recipe, Source  # noqa: E402
from models.checkpoints.adapter import AdaptedCheckpoint, Adapter  # noqa: E402
from models.checkpoints.checkpoint import Checkpoint  # noqa: E402
from models.checkpoints.gguf_reader import GgufSource  # noqa: E402
from models.checkpoints.safetensors_reader import FolderSource  # noqa: E402
from models.checkpoints.tiny import TinyCheckpoint, tiny_shape, write_tiny_gguf  # noqa: E402
from models.checkpoints.weights import PrunedCheckpoint, open_source, recipe_checkpoint  # noqa: E402
from models.distill.example import Example  # noqa: E402
from models.distill.lessons import Lessons  # noqa: E402
from models.distill.low_rank import LowRank, write_adapter  # noqa: E402
from models.distill.plan import LessonPlan, Training  # noqa: E402
from models.distill.student import load_student, model_type  # noqa: E402
from models.distill.teach import Teaching  # noqa: E402
from models.distill.train import Trainer  # noqa: E402
from models.errors import CheckpointError, RecipeError  # noqa: E402
from models.graphs.reference import reference_logits  # noqa: E402
from models.progress import SilentProgress  # noqa: E402

DECODERS = Path(__file__).parents[1] / "data" / "decoders"
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]
TOKENS = [5, 9, 14, 20, 31, 40]
PLAN = LessonPlan(
    shares={"units": 1.0},
    teacher="teacher",
    training=Training(
        steps=4, step_tokens=256, rank=2, alpha=4, warmup_steps=1, keep=("*",), save_every_steps=2
    ),
)


def logits(model: object, tokens: list[int]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([tokens])).logits[0].numpy())  # type: ignore[operator]  # torch's, untyped here


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_in_torch_gives_the_logits_of_its_own_checkpoint(family: str) -> None:
    recorded = np.load(DECODERS / family / "golden.npz")
    student = load_student(FolderSource(DECODERS / family))

    for tokens, wanted in zip(recorded["token_ids"].tolist(), recorded["logits"], strict=True):
        np.testing.assert_allclose(logits(student, tokens), wanted, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_checkpoint_is_taught_pruned(family: str) -> None:
    source = FolderSource(DECODERS / family)
    pruned = PrunedCheckpoint(source, tuple(range(1, source.shape.layers)))

    student = load_student(pruned)

    assert student.config.num_hidden_layers == source.shape.layers - 1
    np.testing.assert_allclose(logits(student, TOKENS), reference_logits(pruned, TOKENS), atol=1e-4)


def test_a_gguf_file_of_another_family_is_taught_too(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(tiny_shape("qwen2", ties_embedding=False))
    write_tiny_gguf(tmp_path / "tiny.gguf", checkpoint, architecture="qwen2")

    student = load_student(GgufSource(tmp_path / "tiny.gguf"))

    np.testing.assert_allclose(
        logits(student, TOKENS), reference_logits(checkpoint, TOKENS), atol=1e-4
    )


@pytest.mark.parametrize(
    "traits",
    [
        {"has_qkv_bias": True, "has_head_norms": True},
        {"window_tokens": 8, "window_layers": (0,)},
    ],
)
def test_a_shape_that_transformers_has_not_is_refused(traits: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="cannot be taught"):
        model_type(msgspec.structs.replace(tiny_shape(), **traits))


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    shape = msgspec.structs.replace(tiny_shape(), layers=3)
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyCheckpoint(shape))
    return tmp_path / "tiny.gguf"


def random_adapter(checkpoint: Checkpoint, *, rank: int) -> LowRank:
    random = np.random.default_rng(3)
    sizes = {
        name: size for name, size in checkpoint.shape.sizes().items() if name[-2:] in {".q", "wn"}
    }
    return {
        name: (
            (random.standard_normal((rank, columns)) / 8).astype(np.float32),
            (random.standard_normal((rows, rank)) / 8).astype(np.float32),
        )
        for name, (rows, columns) in sizes.items()
        if name.startswith("layers.")
    }


@pytest.fixture
def teacher(gguf: Path, tmp_path: Path) -> Recipe:
    folder = tmp_path / "teacher"
    folder.mkdir()
    write_adapter(folder, random_adapter(GgufSource(gguf), rank=3), scale=2.0)
    return Recipe(
        name="teacher",
        version="1",
        summary="",
        source=Source(url=f"file:{gguf}"),
        adapter=AdapterSource(path=str(folder)),
        distill=PLAN,
    )


def taught(
    student: Recipe, teacher: Recipe | None, tmp_path: Path, *, families: tuple[Path, ...] = ()
) -> Adapter:
    assert student.distill is not None
    cache = FactoryCache(tmp_path / "cache")
    teaching = Teaching(student, student.distill, families, cache, teacher=teacher)
    gguf = Path(student.source.url.removeprefix("file:"))
    out = tmp_path / f"{student.name}-{len(families)}"
    teaching.run(gguf, GgufSource(gguf).text_parts(), out, SilentProgress())
    return Adapter(out)


def student_of(teacher: Recipe, *, learning_rate: float = 1e-2) -> Recipe:
    training = msgspec.structs.replace(
        PLAN.training, learning_rate=learning_rate, whole=True, rank=12, alpha=12
    )
    return msgspec.structs.replace(
        teacher,
        name="student",
        layers=Layers(keep=(0, 2)),
        adapter=None,
        distill=msgspec.structs.replace(PLAN, training=training),
    )


def test_a_student_that_learns_nothing_is_its_teacher_without_the_other_layers(
    teacher: Recipe, tmp_path: Path
) -> None:
    student = student_of(teacher, learning_rate=1e-12)

    adapter = taught(student, teacher, tmp_path)

    source = open_source(Path(teacher.source.url.removeprefix("file:")))
    wanted = PrunedCheckpoint(recipe_checkpoint(teacher, source), (0, 2))
    ours = AdaptedCheckpoint(recipe_checkpoint(student, source), adapter)
    for name in wanted.shape.sizes():
        # The adapter is kept in 16 bits.
        np.testing.assert_allclose(ours.weight(name), wanted.weight(name), atol=1e-3)


def test_what_a_student_learns_goes_on_from_its_teacher_and_peft_reads_it(
    teacher: Recipe, tmp_path: Path
) -> None:
    student = student_of(teacher)
    adapter = taught(student, teacher, tmp_path)

    source = open_source(Path(teacher.source.url.removeprefix("file:")))
    bare = recipe_checkpoint(student, source)
    merged = AdaptedCheckpoint(bare, adapter)
    by_peft = peft.PeftModel.from_pretrained(load_student(bare), str(tmp_path / "student-0"))
    before = PrunedCheckpoint(recipe_checkpoint(teacher, source), (0, 2))
    assert np.abs(merged.weight("layers.1.down") - before.weight("layers.1.down")).max() > 1e-3
    np.testing.assert_allclose(reference_logits(merged, TOKENS), logits(by_peft, TOKENS), atol=1e-3)


def test_a_familys_student_goes_on_from_its_own_adapter(teacher: Recipe, tmp_path: Path) -> None:
    student = student_of(teacher)
    taught(student, teacher, tmp_path)
    family = tmp_path / "mine.jsonl"
    family.write_text('{"family": "x", "language": "en", "prompt": "a", "answer": "b"}\n')
    own = AdapterSource(path=str(tmp_path / "student-0"))

    still = student_of(teacher, learning_rate=1e-12)
    adapter = taught(
        msgspec.structs.replace(still, adapter=own), teacher, tmp_path, families=(family,)
    )

    source = open_source(Path(teacher.source.url.removeprefix("file:")))
    shape = recipe_checkpoint(still, source).weight("layers.1.down").shape
    before = Adapter(tmp_path / "student-0").delta("layers.1.down", shape)
    np.testing.assert_allclose(adapter.delta("layers.1.down", shape), before, atol=1e-3)
    assert np.abs(before).max() > 1e-2


def test_every_answer_is_held_to_the_teachers_distributions(tmp_path: Path, gguf: Path) -> None:
    source = GgufSource(gguf)
    example = Example(family="x", language="en", prompt="the", answer="a 12")
    held = PLAN.training
    free = msgspec.structs.replace(held, keep=())

    def first_loss(training: Training, teacher: Checkpoint) -> float:
        model, above = load_student(source.checkpoint), load_student(teacher)
        run = Trainer(model, training, tmp_path, SilentProgress(), teacher=above)
        return run.update([Lessons(source.text_parts(), training).lesson(example)])

    other = TinyCheckpoint(source.shape, seed=8)
    assert first_loss(held, other) > first_loss(free, other) + 0.1
    assert first_loss(held, source.checkpoint) == pytest.approx(first_loss(free, other), abs=1e-4)


def test_a_run_with_another_teacher_is_another_run(teacher: Recipe, tmp_path: Path) -> None:
    student = student_of(teacher)
    cache = FactoryCache(tmp_path)
    other = msgspec.structs.replace(teacher, adapter=None)

    states = {
        Teaching(student, PLAN, (), cache, teacher=recipe)._state(tmp_path)
        for recipe in (teacher, other, None)
    }

    assert len(states) == 3


def test_a_teacher_that_lacks_a_layer_of_its_student_is_refused(
    teacher: Recipe, tmp_path: Path
) -> None:
    lacking = msgspec.structs.replace(teacher, layers=Layers(keep=(0, 1)), adapter=None)
    write_adapter(tmp_path, random_adapter(TinyCheckpoint(), rank=2))
    lacking = msgspec.structs.replace(lacking, adapter=AdapterSource(path=str(tmp_path)))

    with pytest.raises(RecipeError, match=r"keeps layers \[2\]"):
        taught(student_of(teacher), lacking, tmp_path)


def test_a_teacher_of_another_vocabulary_is_refused(teacher: Recipe, tmp_path: Path) -> None:
    other = f"file:{DECODERS / 'qwen2'}"
    foreign = msgspec.structs.replace(teacher, source=Source(url=other), adapter=None)

    with pytest.raises(RecipeError, match="another vocabulary"):
        taught(student_of(teacher), foreign, tmp_path)
