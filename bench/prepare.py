"""Builds the peers of the inference benchmark: `python -m bench prepare`.

llama.cpp comes out of a source package and is compiled for this very processor; its model file is
written from our artefact's own weights. Everything lies in the cache folder, below `bench/`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path
from typing import NoReturn

from bench.peers.gguf_export import export_gguf
from edge_worker.adapters.artefact import Artefact, cache_folder, load_artefact, resolve_model
from fleet_protocol.errors import FleetError
from fleet_protocol.manifest import DEFAULT_MODEL

LLAMA_PACKAGE = "llama-cpp-python"
LLAMA_VERSION = "0.3.36"
LLAMA_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# The server alone, as fast as this processor goes; no curl, no TLS, no web page.
LLAMA_FLAGS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF"),
    *("-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"),
)
# optimum's exporter for ONNX refuses newer transformers.
OPTIMUM_PACKAGES = (
    *("torch>=2.6", "transformers>=4.56,<4.58", "optimum>=2.0", "optimum-onnx[onnxruntime]>=0.1"),
    *("gguf>=0.17", "accelerate"),
)
_EXPORT = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from optimum.exporters.onnx import main_export
source, target = map(Path, sys.argv[1:])
model = AutoModelForCausalLM.from_pretrained(
    source.parent, gguf_file=source.name, dtype=torch.float32)
model.save_pretrained(target)
main_export(str(target), output=target, task="text-generation-with-past", do_validation=False,
            no_post_process=True)
"""


class Peers:
    """Where the peers lie, whether they are there or not."""

    def __init__(self, cache: Path, artefact: Artefact) -> None:
        folder = cache / "bench"
        self.llama_source = folder / f"llama.cpp-{LLAMA_VERSION}"
        self.llama_server = self.llama_source / "build" / "bin" / "llama-server"
        name = f"{artefact.manifest.name}-{_fingerprint(artefact)}"
        self.gguf = folder / "weights" / f"{name}-q8_0.gguf"
        self.optimum_venv = folder / "optimum"
        self.optimum_model = folder / "weights" / f"{name}-fp32"

    @property
    def optimum_python(self) -> Path:
        """The interpreter that has optimum and torch."""
        return self.optimum_venv / "bin" / "python"

    @property
    def has_llama(self) -> bool:
        """Whether llama.cpp and its model file are there."""
        return self.llama_server.is_file() and self.gguf.is_file()

    @property
    def has_optimum(self) -> bool:
        """Whether optimum and its model are there."""
        return self.optimum_python.is_file() and (self.optimum_model / "model.onnx").is_file()


def _fingerprint(artefact: Artefact) -> str:
    """Return a short name of the weights' bytes: two builds of one version must not be mixed up."""
    hashes = sorted(file.sha256 for file in artefact.manifest.files)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:10]


def build_llama(peers: Peers) -> None:
    """Download, unpack and compile llama.cpp's server: minutes, once."""
    if not peers.llama_server.is_file():
        if not (peers.llama_source / "CMakeLists.txt").is_file():
            unpack_llama(peers.llama_source)
        cmake = shutil.which("cmake") or _stop("cmake is missing: install it and a C++ compiler")
        build = peers.llama_source / "build"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        _say(f"compiling llama.cpp in {build} (5 to 15 minutes, once)")
        _run([cmake, "-S", peers.llama_source, "-B", build, *generator, *LLAMA_FLAGS])
        jobs = str(os.cpu_count() or 1)
        _run([cmake, "--build", build, "--parallel", jobs, "--target", "llama-server"])
    _say(f"llama-server: {peers.llama_server}")


def unpack_llama(target: Path) -> None:
    """Fetch the source package, check its bytes, and keep the llama.cpp inside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary)
        _say(f"downloading {LLAMA_PACKAGE} {LLAMA_VERSION} (77 MB)")
        wanted = f"{LLAMA_PACKAGE}=={LLAMA_VERSION}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        _run([*pip, "--no-binary", LLAMA_PACKAGE, "--dest", folder, wanted])
        package = next(folder.glob("*.tar.gz"))
        with package.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != LLAMA_SHA256:
            _stop(f"{package.name} has the sha256 {digest}, not {LLAMA_SHA256}")
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")
        (package.with_name(package.name.removesuffix(".tar.gz")) / "vendor" / "llama.cpp").rename(
            target
        )


def write_weights(peers: Peers, artefact: Artefact) -> None:
    """Write our weights as llama.cpp reads them."""
    if not peers.gguf.is_file():
        _say(f"writing {peers.gguf}")
        peers.gguf.parent.mkdir(parents=True, exist_ok=True)
        export_gguf(artefact, peers.gguf)
    _say(f"weights: {peers.gguf}")


def build_optimum(peers: Peers, python: Path | None) -> None:
    """Make optimum's environment (torch: gigabytes) and its graph of our weights.

    Args:
        peers: Where they belong.
        python: An interpreter that has the packages already; None: a new environment.
    """
    if not peers.optimum_python.is_file():
        if python is None:
            _say(f"installing optimum and torch into {peers.optimum_venv}")
            venv.create(peers.optimum_venv, with_pip=True)
            _run([peers.optimum_python, "-m", "pip", "install", "--quiet", *OPTIMUM_PACKAGES])
        else:
            peers.optimum_python.parent.mkdir(parents=True, exist_ok=True)
            # A script and no link: a link would lose the environment that it belongs to.
            peers.optimum_python.write_text(f'#!/bin/sh\nexec "{python.absolute()}" "$@"\n')
            peers.optimum_python.chmod(0o755)
    if not peers.has_optimum:
        _say(f"exporting the weights with optimum to {peers.optimum_model} (minutes, once)")
        _run([peers.optimum_python, "-c", _EXPORT, peers.gguf, peers.optimum_model])
    _say(f"optimum: {peers.optimum_model}")


def _run(command: list[str | Path]) -> None:
    done = subprocess.run([str(word) for word in command], check=False, stdout=sys.stderr)
    if done.returncode:
        _stop(f"{command[0]} failed (its output is above)")


def _say(what: str) -> None:
    print(what, file=sys.stderr)


def _stop(what: str) -> NoReturn:
    raise SystemExit(what)


def main(words: list[str]) -> None:
    """Prepare what is not there yet."""
    parser = argparse.ArgumentParser(prog="python -m bench prepare", description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name in the cache, or a folder")
    parser.add_argument("--optimum", action="store_true", help="optimum and torch, too (large)")
    parser.add_argument(
        "--python", type=Path, help="with --optimum: an interpreter that has them already"
    )
    options = parser.parse_args(words)
    cache = cache_folder(os.environ)
    try:
        artefact = load_artefact(resolve_model(options.model, cache))
    except FleetError as error:
        _stop(f"{error}\n{error.hint}")
    peers = Peers(cache, artefact)
    build_llama(peers)
    write_weights(peers, artefact)
    if options.optimum:
        build_optimum(peers, options.python)
