"""Base images with Debian's cloud-init, as Raspberry Pi OS has it since Debian 13."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.deploy.base_image import _SETUP, PACKAGES

_MORE: Final = ("cloud-init",)


def cloud_init_image(suite: str) -> Path:
    """Return the folder of such an image, built where there is none yet (some three minutes)."""
    recipe = "\n".join((suite, *PACKAGES, *_MORE, *_SETUP))
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgefleet/boards"
    cache.mkdir(parents=True, exist_ok=True)
    image = cache / f"{suite}-cloud-init-{digest}"
    with (cache / f"{image.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            _build(suite, image)
    return image


def _build(suite: str, image: Path) -> None:
    half = image.with_name(f"{image.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    words = ["--variant=minbase", f"--include={','.join((*PACKAGES, *_MORE))}"]
    hooks = [f"--customize-hook={line}" for line in _SETUP]
    subprocess.run(
        ["mmdebstrap", *words, *hooks, suite, str(half)], check=True, stdin=subprocess.DEVNULL
    )
    half.rename(image)
