"""A worker whose echo says its prompt over and over until `max_tokens` ends it, as models may.

It is started as the worker is: `python -m tests.examples.talkative_worker run ...`.
"""

from __future__ import annotations

import msgspec

from edge_worker import loading
from edge_worker.adapters.echo_engine import EchoEngine, to_bytes, to_tokens
from edge_worker.cli.program import main
from edge_worker.ports import GenerationRequest


class TalkativeEngine(EchoEngine):
    """Free text goes on; an answer of a form is what it must be."""

    def add(self, request: GenerationRequest) -> None:
        if request.generation.output is None:
            prompt = to_bytes(request.prompt_tokens) + b" "
            times = 1 + 4 * request.generation.max_tokens // len(prompt)
            tokens = to_tokens((prompt * times).decode().strip())
            request = msgspec.structs.replace(request, prompt_tokens=tokens)
        super().add(request)


if __name__ == "__main__":
    vars(loading)["EchoEngine"] = TalkativeEngine
    main()
