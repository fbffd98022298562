"""The recipe of docs/own-model.md is one: it makes a model of the weights that it names."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from models.checkpoints.tiny import TinyCheckpoint, write_tiny_gguf

PAGE: Final = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text()


def test_the_recipe_on_the_page_makes_a_model_that_passes(tmp_path: Path) -> None:
    found = re.search(r"<!-- recipe -->\n```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    weights = re.findall(r'^url = "file:(.*)"$', found[1], re.MULTILINE)[0]
    write_tiny_gguf(tmp_path / weights, TinyCheckpoint())
    (tmp_path / "my-model.toml").write_text(found[1])
    commands = ("build ./my-model.toml --out artefact", "verify artefact")
    for words in commands:
        outcome = subprocess.run(
            [sys.executable, "-m", "models", *words.split()],
            cwd=tmp_path,
            env={**os.environ, "EDGEFLEET_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert '"name":"my-model"' in (tmp_path / "artefact" / "manifest.json").read_text().replace(
        " ", ""
    )
