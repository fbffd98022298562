"""A site with a broker, a dispatcher and a board of its own, and the plug of its uplink pulled."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from tests.integration.fleet import Device, Fleet

LIBRARY = """
version = 1
[[entry]]
name = "gas-smell"
answer = "Leave the building and touch no switch."
pattern = ["* smell * gas *"]
"""
QUESTION = "What do I do when I smell some gas here?"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_site(site: Fleet, cloud_port: int) -> None:
    library = site.folder / "library.toml"
    library.write_text(LIBRARY)
    site.start_dispatcher(
        LIBRARY__FILE=str(library),
        PROVIDER__BASE_URL=f"http://127.0.0.1:{cloud_port}",
        PROVIDER__API_KEY_ENV="",
        PROVIDER__BACKOFF__ATTEMPTS="1",
    )


def ask_in_words(device: Device, text: str) -> str:
    """Ask as the plainest of devices does."""
    before = len(device.heard["dev/hall-3/answer"])
    device.publish("dev/hall-3/ask", text)
    device.wait(lambda: len(device.heard["dev/hall-3/answer"]) > before, "an answer in words")
    return device.heard["dev/hall-3/answer"][before].decode()


def test_a_site_whose_uplink_is_gone_answers_over_its_own_broker(tmp_path: Path) -> None:
    port = free_port()
    with Fleet(tmp_path) as site:
        device = site.device("hall-3")
        site.start("cloud", "cloud_dispatcher", "simulate-cloud", "--port", str(port))
        device.wait(lambda: listens(port), "the cloud", 60.0)
        start_site(site, port)
        site.start_worker("w1", engine="echo")
        site.online(device, "w1")
        device.submit("1", prompt=QUESTION, escalate="always", cache="off")
        assert (device.result("1")["answered_by"], device.result("1")["simulated"]) == (
            "cloud",
            True,
        )

        site.kill("cloud")
        assert "warm" in ask_in_words(device, "Is it warm?")
        device.submit("2", prompt="Is it cold?", escalate="always")
        result = device.result("2")
        assert (result["answered_by"], result["degraded"]) == ("edge", True)
        # More than a board holds; how long the cloud is waited for is the device's to say.
        device.submit("3", prompt=QUESTION, max_tokens=4096, deadline_ms=3_000, cache="off")
        result = device.result("3")
        assert (result["text"], result["answered_by"], result["reason"]) == (
            "Leave the building and touch no switch.",
            "offline",
            "too_long",
        )

        # What is more, the board is gone, and the dispatcher begins anew without any link.
        site.kill("w1")
        site.kill("dispatcher")
        start_site(site, port)
        device.wait(lambda: _is_online(device), "the dispatcher")
        device.submit("4", prompt=QUESTION, deadline_ms=1_000)
        result = device.result("4")
        assert (result["answered_by"], result["code"], result["offline"]["entry"]) == (
            "offline",
            "deadline",
            "gas-smell",
        )
        for job in "1234":  # what was told just before the kill is told again, word for word
            assert all(said == device.result(job) for said in device.said(job, "res"))


def _is_online(device: Device) -> bool:
    said = [json.loads(payload) for payload in device.heard["fleet/dispatcher"]]
    epochs = {presence["epoch"] for presence in said if presence["status"] == "online"}
    return len(epochs) > 1
