"""LiteLLM's Router as a peer: makes the calls of a plan read from standard input.

Runs in an environment of its own, which has litellm and nothing of ours. The plan is a JSON object:
`first` and `backup` (base URLs), `instants_s`, `retries`, `deadline_s`. When everything is loaded a
line `ready` is printed, the plan begins with the next line of input, and in the end one JSON array
of [answered, seconds] pairs is printed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import Any

import litellm


def deployment(name: str, model: str, base_url: str) -> dict[str, Any]:
    """Return one entry of the Router's list."""
    return {
        "model_name": name,
        "litellm_params": {
            "model": f"openai/{model}",
            "api_base": base_url,
            "api_key": "simulated",
        },
    }


async def play(plan: dict[str, Any]) -> list[tuple[bool, float]]:
    """Make each call at its instant."""
    router = litellm.Router(
        model_list=[
            deployment("first", plan["first_model"], plan["first"]),
            deployment("backup", plan["backup_model"], plan["backup"]),
        ],
        fallbacks=[{"first": ["backup"]}],
        num_retries=plan["retries"],
        timeout=plan["deadline_s"],
    )
    begun = time.perf_counter()

    async def one(number: int, at_s: float) -> tuple[bool, float]:
        await asyncio.sleep(max(0.0, at_s - (time.perf_counter() - begun)))
        asked_at = time.perf_counter()
        text = ""
        try:
            stream = await router.acompletion(
                model="first",
                messages=[{"role": "user", "content": f"question {number}"}],
                max_tokens=64,
                stream=True,
                extra_body={"thinking": {"type": "disabled"}},
            )
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        except Exception:  # noqa: BLE001 - whatever it raises, there is no answer
            text = ""
        return bool(text), time.perf_counter() - asked_at

    return list(await asyncio.gather(*(one(*pair) for pair in enumerate(plan["instants_s"]))))


def main() -> None:
    """Load, wait for the word, play."""
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    plan = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asyncio.run(play(plan))), flush=True)


if __name__ == "__main__":
    main()
