"""A MicroPython device asks the fleet in plain text: umqtt.simple, MQTT 3.1.1.

Once a minute it asks whether it is too warm, and switches a fan by the answer. One question is open
at a time: an answer does not say which question it belongs to.

umqtt.simple takes the memory for whatever arrives, and a board with little of it ends there. So
each question limits its answer: a decision by its choices, a text by `max_tokens`. What is still
too long is asked again for half as much.
"""

import json
import time

import fleet_settings as mine  # a copy of fleet_settings.example.py
from umqtt.simple import MQTTClient

PACKET_BYTES = 256
HEADER_BYTES = 5
MAX_TOKENS = 40  # about 160 bytes of English
FEWEST_TOKENS = 8
DEADLINE_S = 20  # afterwards the fleet says that there is no answer
GRACE_S = 5  # for its way to us
EVERY_S = 60
LIMIT_C = 28

ASK = b"fleet/v1/dev/" + mine.DEVICE.encode() + b"/ask"
ANSWER = b"fleet/v1/dev/" + mine.DEVICE.encode() + b"/answer"


class Fleet:
    """Asks one question after the other."""

    def __init__(self, client: MQTTClient) -> None:
        self._client = client
        self._answer: bytes | None = None

    def connect(self) -> None:
        """Connect and listen. Raises OSError or MQTTException."""
        self._client.set_callback(self._heard)
        self._client.connect()
        self._client.subscribe(ANSWER, 1)

    def ask(
        self, question: str, choices: list[str] | None = None, max_tokens: int = MAX_TOKENS
    ) -> str | None:
        """Return the answer; None: none that fits came in time.

        Raises ValueError: the question is too long. OSError: the link is down; connect again.
        """
        while max_tokens >= FEWEST_TOKENS:
            answer = self._ask_once(question, choices, max_tokens)
            if answer is not None and len(answer) <= PACKET_BYTES - HEADER_BYTES - len(ANSWER):
                return answer.decode()
            max_tokens //= 2
        return None

    def _ask_once(self, question: str, choices: list[str] | None, max_tokens: int) -> bytes | None:
        job = {"prompt": question, "max_tokens": max_tokens, "deadline_ms": DEADLINE_S * 1000}
        if choices:
            job["output"] = {"choices": choices}
        packet = json.dumps(job).encode()
        if HEADER_BYTES + len(ASK) + len(packet) > PACKET_BYTES:
            raise ValueError("too long to ask")
        self._answer = None
        # Without waiting for a receipt: where it is lost, silence has it asked again.
        self._client.publish(ASK, packet)
        until = time.ticks_add(time.ticks_ms(), (DEADLINE_S + GRACE_S) * 1000)
        while self._answer is None and time.ticks_diff(until, time.ticks_ms()) > 0:
            self._client.check_msg()
            time.sleep_ms(20)
        return self._answer

    def _heard(self, _topic: bytes, message: bytes) -> None:
        self._answer = message


def tls() -> object:
    """Return what trusts the fleet's own authority and nobody else; None for a plain link."""
    if mine.CA_FILE is None:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=mine.CA_FILE)
    return context


def join_wifi() -> None:
    """Wait for the network; a board without one, as a PC, is on it."""
    try:
        import network
    except ImportError:
        return
    station = network.WLAN(network.STA_IF)
    station.active(True)
    station.connect(mine.WIFI_NAME, mine.WIFI_PASSWORD)
    while not station.isconnected():
        time.sleep_ms(250)


def temperature_c() -> float:
    """Put your sensor here: this is the chip's own, or 31.5 where there is none."""
    try:
        import esp32

        return esp32.mcu_temperature()
    except (ImportError, AttributeError):
        return 31.5


def switch_fan(runs: bool) -> None:  # noqa: FBT001 - a pin is on or off
    """Put your pin here: machine.Pin(2, machine.Pin.OUT).value(runs)."""
    print("fan", "on" if runs else "off")


def measure(fleet: Fleet) -> None:
    """Ask about one reading and act; any other answer ("No answer (...)") leaves the fan alone."""
    question = f"Is {temperature_c()} C above the limit of {LIMIT_C} C? Answer yes or no."
    answer = fleet.ask(question, ["yes", "no"], FEWEST_TOKENS)
    print(question, answer)
    if answer in ("yes", "no"):
        switch_fan(answer == "yes")


def main() -> None:
    """Connect, again and again, and ask."""
    join_wifi()
    user = mine.DEVICE if mine.PASSWORD else None
    client = MQTTClient(
        mine.DEVICE, mine.HOST, mine.PORT, user, mine.PASSWORD, keepalive=2 * EVERY_S, ssl=tls()
    )
    fleet = Fleet(client)
    while True:
        try:
            fleet.connect()
            while True:
                measure(fleet)
                time.sleep(EVERY_S)
                client.ping()
        except OSError as error:
            print("link:", error)
            time.sleep(5)


if __name__ == "__main__":
    main()
