// TLS that takes an authority and trusts nobody else.
#pragma once

#include "WiFi.h"

struct WiFiClientSecure : Client {
  WiFiClientSecure() { rootCa = ""; }
  void setCACert(const char *pem) { rootCa = pem; }
};
