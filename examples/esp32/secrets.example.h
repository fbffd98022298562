// Copy this to secrets.h, which git ignores, and fill in what is yours.
#pragma once

#define WIFI_SSID "workshop"
#define WIFI_PASSWORD ""

#define FLEET_HOST "broker.example"
#define FLEET_PORT 8884
#define FLEET_DEVICE "hall-3"

// What `fleet enroll device hall-3 --password` wrote to keys/hall-3. Leave out what follows for a
// broker without passwords and TLS.
#define FLEET_PASSWORD ""
#define FLEET_TLS
const char FLEET_CA[] = R"(-----BEGIN CERTIFICATE-----
the lines of ca.pem
-----END CERTIFICATE-----
)";
