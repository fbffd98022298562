"""A fleet as devices meet it in the field: TLS, a password each, the access list of a device."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Self

import trustme

from fleet_cli.acl_file import render_acl
from fleet_cli.broker import BrokerKind, BrokerOptions
from fleet_client import FleetClient
from fleet_client.access_probe import AccessProbe
from fleet_protocol.access import Identity
from fleet_protocol.settings import BrokerSettings, TlsSettings
from fleet_protocol.topics import Role, Topics
from tests.integration.fleet import Fleet

HOST = "localhost"
WORKER = "w1"
_STAFF = (
    Identity(role=Role.DISPATCHER, id="dispatcher"),
    Identity(role=Role.WORKER, id=WORKER),
    Identity(role=Role.VIEWER, id="wall"),
)


class DeviceSite:
    """A Mosquitto, a dispatcher and a worker without a model; these devices may ask."""

    def __init__(self, folder: Path, *devices: str) -> None:
        identities = (*_STAFF, *(Identity(role=Role.DEVICE, id=name) for name in devices))
        self.folder = folder
        self.passwords = {one.id: secrets.token_hex(16) for one in identities}
        self.ca_file = folder / "ca.pem"
        authority, cert, key = trustme.CA(), folder / "cert.pem", folder / "key.pem"
        server = authority.issue_cert(HOST, "127.0.0.1")
        authority.cert_pem.write_to_path(self.ca_file)
        server.private_key_pem.write_to_path(key)
        server.cert_chain_pems[0].write_to_path(cert)
        options = BrokerOptions(
            passwords=self.passwords,
            acl=render_acl(Topics(), identities),
            cert_file=cert,
            key_file=key,
        )
        self.fleet = Fleet(folder, BrokerKind.MOSQUITTO, options=options)

    def __enter__(self) -> Self:
        self.fleet.__enter__()
        try:
            self.fleet.start_dispatcher(**self._environ("dispatcher", ""))
            self._start_worker()
            self._wait_for_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.fleet.__exit__(*exc)

    @property
    def port(self) -> int:
        """Of the broker, for every version of MQTT."""
        return self.fleet.port

    def settings(self, name: str) -> BrokerSettings:
        """Return how somebody connects."""
        return BrokerSettings(
            url=f"mqtts://{HOST}:{self.port}",
            username=name,
            password=self.passwords[name],
            tls=TlsSettings(ca_file=str(self.ca_file)),
        )

    def client(self, device: str) -> FleetClient:
        """Return a second client that acts as a device."""
        return FleetClient(self.settings(device), device, client_id=f"{device}-second")

    def _start_worker(self) -> None:
        self.fleet.start(
            WORKER,
            *("tests.examples.talkative_worker", "run", "--id", WORKER, "--engine", "echo"),
            *("--broker", self.fleet.broker.url, "--data", str(self.folder / WORKER)),
            environ=self._environ(WORKER, "EDGEFLEET_WORKER_"),
        )

    def _environ(self, name: str, prefix: str) -> dict[str, str]:
        return {
            f"{prefix}BROKER__USERNAME": name,
            f"{prefix}BROKER__PASSWORD": self.passwords[name],
            f"{prefix}BROKER__TLS__CA_FILE": str(self.ca_file),
        }

    def _wait_for_worker(self) -> None:
        with AccessProbe(self.settings("wall"), ("fleet/v1/fleet/summary",)) as wall:
            wall.wait_until(lambda heard: any(b'"online":1' in payload for _, payload in heard))
