"""`generate` of transformers or optimum as a program that answers line by line.

It runs in an environment of its own, so it imports nothing of the project.
"""

# ruff: noqa: PLC0415  # only one of the two runtimes is there to be imported
from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch


class Clock:
    """A streamer: `generate` hands it the prompt first, then every token."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, _tokens: Any) -> None:
        """Note the time."""
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


def load(runtime: str, folder: str, threads: int) -> Any:
    """Return a model with `generate`, in 32-bit floats: what its users get by default."""
    if runtime == "transformers":
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForCausalLM

    options = SessionOptions()
    options.intra_op_num_threads = threads
    return ORTModelForCausalLM.from_pretrained(folder, session_options=options)


def run(model: Any, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Generate the answers one after the other."""
    result: dict[str, Any] = {"took_s": 0.0, "tokens": 0, "first_s": [], "generating_s": []}
    started_s = time.perf_counter()
    for job in jobs:
        clock = Clock()
        asked_s = time.perf_counter()
        prompt = torch.tensor([job["prompt_tokens"]])
        with torch.inference_mode():
            model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=job["answer_tokens"],
                min_new_tokens=job["answer_tokens"],
                do_sample=False,
                streamer=clock,
            )
        first_s, last_s = clock.times_s[1], clock.times_s[-1]
        result["first_s"].append(first_s - asked_s)
        result["generating_s"].append(last_s - first_s)
        result["tokens"] += len(clock.times_s) - 1
    result["took_s"] = time.perf_counter() - started_s
    return result


def main() -> None:
    """Load, say so, answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtime", choices=("transformers", "optimum"))
    parser.add_argument("folder")
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started_s = time.perf_counter()
    model = load(options.runtime, options.folder, options.threads)
    say({"load_s": time.perf_counter() - started_s})
    for line in sys.stdin:
        say(run(model, json.loads(line)["jobs"]))


def say(answer: object) -> None:
    """Write one line."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
