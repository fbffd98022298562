// A network that is there, and what runs over it.
#pragma once

#include "Arduino.h"

enum { WL_CONNECTED = 3 };

struct HostWiFi {
  void begin(const char *, const char *) {}
  int status() { return WL_CONNECTED; }
};
extern HostWiFi WiFi;

struct Client {
  const char *rootCa = nullptr;  // PEM; nullptr: no TLS
};
struct WiFiClient : Client {};
