"""Copy this to fleet_settings.py, which git ignores, and fill in what is yours."""

WIFI_NAME = "workshop"
WIFI_PASSWORD = ""

HOST = "broker.example"
PORT = 8884
DEVICE = "hall-3"

# What `fleet enroll device hall-3 --password` wrote to keys/hall-3. MicroPython reads no PEM:
# openssl x509 -in ca.pem -outform der -out ca.der. None, both, for a broker without
# passwords and TLS.
PASSWORD = ""
CA_FILE = "ca.der"
