"""A sealed artefact answers as the plain one does, and its plain bytes are on no disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import onnx
import onnxruntime
import pytest

from edge_worker.adapters.artefact import Artefact, load_artefact, present_variants
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.adapters.onnx_session import _give
from edge_worker.config import WorkerSettings
from edge_worker.core.batching import EngineSettings
from edge_worker.loading import load_engine
from edge_worker.ports import GenerationRequest, Grew, ModelError
from fleet_pki.sealing import KeyRing, new_key
from fleet_protocol.errors import ConfigError
from fleet_protocol.manifest import MANIFEST_NAME
from fleet_protocol.messages import ChatMessage, ChatRole, Generation
from models.artefacts.seal import seal_artefact
from models.errors import CannotWriteError, VerificationError
from tests.contract.tiny_model import (
    build_artefact,
    build_graph,
    build_tokenizer,
    describe,
    printable_tokens,
    write_manifest,
)

ONE_SLOT = EngineSettings(slots=1, intra_op_threads=1)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "models.key"
    path.write_text(f"{new_key()}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Artefact:
    """An artefact whose weights lie beside its graph, as the real ones do."""
    artefact = build_artefact(tmp_path / "plain")
    tokenizer = build_tokenizer()
    graph = build_graph(printable_tokens(tokenizer), vocab=tokenizer.get_vocab_size(), seed=7)
    onnx.save(
        graph,
        artefact.folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=64,
    )
    names = ("model.onnx", "model.onnx.data", "tokenizer.json")
    files = tuple(describe(artefact.folder, name) for name in names)
    write_manifest(artefact.folder, msgspec.structs.replace(artefact.manifest, files=files))
    return load_artefact(artefact.folder)


@pytest.fixture
def sealed(plain: Artefact, key: Path, tmp_path: Path) -> Path:
    seal_artefact(plain.folder, tmp_path / "sealed", KeyRing.read(key))
    return tmp_path / "sealed"


def answer(engine: OnnxEngine) -> str:
    prompt = engine.encode((ChatMessage(role=ChatRole.USER, content="the thing"),))
    wanted = Generation(max_tokens=12, temperature=0.0)
    engine.add(GenerationRequest(id="a", prompt_tokens=prompt, generation=wanted))
    text = ""
    while not engine.is_idle:
        text += "".join(event.text for event in engine.step() if isinstance(event, Grew))
    engine.close()
    return text


def test_it_answers_as_the_plain_one_does(plain: Artefact, sealed: Path, key: Path) -> None:
    assert {path.name for path in sealed.iterdir()} == {
        *("manifest.json", "model.onnx.sealed", "model.onnx.data.sealed", "tokenizer.json.sealed")
    }
    artefact = load_artefact(sealed, key_file=str(key))
    assert set(artefact.opened) == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    expected = answer(OnnxEngine(plain, settings=ONE_SLOT))
    assert expected
    assert answer(OnnxEngine(artefact, settings=ONE_SLOT)) == expected
    assert [variant.name for variant in present_variants(sealed, artefact.manifest)] == ["default"]


def test_the_worker_loads_it_with_its_key_and_not_without(sealed: Path, key: Path) -> None:
    settings = WorkerSettings(model=str(sealed), model_key_file=str(key), threads=1)
    loaded = load_engine(settings, {})
    assert loaded.engine.model.name == "tiny"
    loaded.engine.close()
    with pytest.raises(ModelError) as caught:
        load_engine(WorkerSettings(model=str(sealed), threads=1), {})
    assert caught.value.code == "model_sealed"
    with pytest.raises(ConfigError) as unread:
        load_engine(WorkerSettings(model=str(sealed), model_key_file=f"{key}.none", threads=1), {})
    assert unread.value.code == "no_key"


def test_another_key_opens_nothing(sealed: Path, key: Path) -> None:
    key.write_text(f"{new_key()}\n")
    with pytest.raises(ModelError) as caught:
        load_artefact(sealed, key_file=str(key))
    assert caught.value.code == "unknown_key"


def test_a_changed_file_and_one_of_another_model_are_refused(sealed: Path, key: Path) -> None:
    path = sealed / "model.onnx.data.sealed"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        load_artefact(sealed, key_file=str(key))
    assert caught.value.code == "seal_broken"
    # Sealed with the right key, and not what the manifest says.
    path.write_bytes((sealed / "tokenizer.json.sealed").read_bytes())
    with pytest.raises(ModelError) as damaged:
        load_artefact(sealed, key_file=str(key))
    assert damaged.value.code == "model_damaged"


_LOAD_WITHOUT_WRITING = """
import resource, sys
from edge_worker.adapters.artefact import load_artefact
from edge_worker.adapters.onnx_engine import OnnxEngine
from edge_worker.core.batching import EngineSettings
from pathlib import Path

# From here on no file, of whatever file system, takes a byte.
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    Path(sys.argv[3]).write_bytes(b"x")
except OSError:
    pass
else:
    raise SystemExit("the limit does not hold")
# With drafts, keys and values lie in a nameless file of memory, which the limit counts, too.
settings = EngineSettings(slots=1, draft_tokens=0)
engine = OnnxEngine(load_artefact(Path(sys.argv[1]), key_file=sys.argv[2]), settings=settings)
engine.close()
"""


def test_loading_writes_nothing_anywhere(sealed: Path, key: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-B", "-c", _LOAD_WITHOUT_WRITING]
    places = [str(sealed), str(key), str(tmp_path / "probe")]
    done = subprocess.run(
        [*words, *places], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_runtime_copies_what_it_needs(plain: Artefact, sealed: Path, key: Path) -> None:
    """Else the opened bytes would have to stay for as long as the model."""
    artefact = load_artefact(sealed, key_file=str(key))
    engine = OnnxEngine(artefact, settings=ONE_SLOT)
    for data in artefact.opened.values():
        data[:] = bytes(len(data))
    assert answer(engine) == answer(OnnxEngine(plain, settings=ONE_SLOT))


def test_an_old_runtime_says_what_it_needs() -> None:
    with pytest.raises(ModelError) as caught:
        _give(SimpleNamespace(), {"model.onnx.data": bytearray()})
    assert caught.value.code == "runtime_too_old"
    assert onnxruntime.__version__ in str(caught.value)


def test_only_a_sound_plain_artefact_is_sealed(
    plain: Artefact, sealed: Path, key: Path, tmp_path: Path
) -> None:
    ring = KeyRing.read(key)
    with pytest.raises(VerificationError, match="missing or not what"):
        seal_artefact(sealed, tmp_path / "twice", ring)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").write_text("dear diary")
    with pytest.raises(CannotWriteError):
        seal_artefact(plain.folder, tmp_path / "mine", ring)
    assert (tmp_path / "mine" / "diary").exists()
    (plain.folder / "model.onnx.data").write_bytes(b"other")
    with pytest.raises(VerificationError):
        seal_artefact(plain.folder, tmp_path / "bad", ring)
    assert not (tmp_path / "bad" / MANIFEST_NAME).exists()
