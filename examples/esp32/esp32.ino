// Asks the fleet from an ESP32, in plain text, over MQTT 3.1.1. Library: PubSubClient 2.8.
//
// Once a minute it asks whether it is too warm, and drives a fan by the answer. What is typed on the
// serial line is asked as well. One question is open at a time: an answer does not say which question
// it belongs to.
//
// PubSubClient holds one packet of 256 bytes (MQTT_MAX_PACKET_SIZE). A question that does not fit is
// refused here; an answer that does not fit is dropped by the library, and nobody is told. So each
// question limits its answer, a decision by its choices and a text by max_tokens, and one that stays
// silent is asked again for half as much.

#include <WiFi.h>
#include <WiFiClientSecure.h>
#include <PubSubClient.h>

#include "secrets.h"  // a copy of secrets.example.h

#ifndef FLEET_MAX_TOKENS
#define FLEET_MAX_TOKENS 40  // about 160 bytes of English
#endif
#ifndef FLEET_DEADLINE_MS
#define FLEET_DEADLINE_MS 20000UL  // afterwards the fleet says that there is no answer
#endif
#ifndef FLEET_GRACE_MS
#define FLEET_GRACE_MS 5000UL  // for its way to us; afterwards it was too long for us
#endif
#ifndef FLEET_EVERY_MS
#define FLEET_EVERY_MS 60000UL
#endif

const char *const ASK = "fleet/v1/dev/" FLEET_DEVICE "/ask";
const char *const ANSWER = "fleet/v1/dev/" FLEET_DEVICE "/answer";
const uint8_t FAN_PIN = 2;
const float LIMIT_C = 28.0;
const int FEWEST_TOKENS = 8;

#ifdef FLEET_TLS
WiFiClientSecure network;
#else
WiFiClient network;
#endif
PubSubClient mqtt(network);

struct Question {
  char text[160];
  bool decides;  // it is about the fan: yes or no
  int maxTokens;
  bool isOpen;
  unsigned long askedAtMs;
} question;

char typed[sizeof question.text];
size_t typedLength = 0;
unsigned long measuredAtMs = 0;
bool hasMeasured = false;

// Writes a text as it stands in JSON; returns false if there is no room.
bool escape(const char *text, char *out, size_t room) {
  size_t length = 0;
  for (; *text; text++) {
    bool isSpecial = *text == '"' || *text == '\\';
    if (length + isSpecial + 2 > room) return false;
    if (isSpecial) out[length++] = '\\';
    out[length++] = (uint8_t)*text < ' ' ? ' ' : *text;
  }
  out[length] = '\0';
  return true;
}

void sendQuestion() {
  char text[200];
  char packet[MQTT_MAX_PACKET_SIZE];
  const char *form = question.decides ? ",\"output\":{\"choices\":[\"yes\",\"no\"]}" : "";
  bool fits = escape(question.text, text, sizeof text) &&
              (size_t)snprintf(packet, sizeof packet,
                               "{\"prompt\":\"%s\",\"max_tokens\":%d,\"deadline_ms\":%lu%s}", text,
                               question.maxTokens, FLEET_DEADLINE_MS, form) < sizeof packet;
  // PubSubClient publishes at QoS 0: should it get lost, silence has it asked again.
  question.isOpen = fits && mqtt.publish(ASK, packet);
  question.askedAtMs = millis();
  if (!question.isOpen) Serial.println(fits && !mqtt.connected() ? "Not connected." : "Too long to ask.");
}

void ask(const char *text, bool decides) {
  snprintf(question.text, sizeof question.text, "%s", text);
  question.decides = decides;
  question.maxTokens = decides ? FEWEST_TOKENS : FLEET_MAX_TOKENS;
  Serial.print("> ");
  Serial.println(question.text);
  sendQuestion();
}

void onAnswer(char *, uint8_t *payload, unsigned int length) {
  char answer[MQTT_MAX_PACKET_SIZE];
  if (!question.isOpen || length >= sizeof answer) return;
  memcpy(answer, payload, length);
  answer[length] = '\0';
  question.isOpen = false;
  Serial.println(answer);
  if (!question.decides) return;
  // Anything else ("No answer (...)", "Not accepted (...)") leaves the fan as it is.
  if (strcmp(answer, "yes") == 0) digitalWrite(FAN_PIN, HIGH);
  if (strcmp(answer, "no") == 0) digitalWrite(FAN_PIN, LOW);
}

void whenSilent() {
  if (!question.isOpen || millis() - question.askedAtMs < FLEET_DEADLINE_MS + FLEET_GRACE_MS) return;
  question.maxTokens /= 2;
  if (question.maxTokens < FEWEST_TOKENS) {
    question.isOpen = false;
    Serial.println("No answer that fits.");
    return;
  }
  Serial.println("Silence: asking for half as much.");
  sendQuestion();
}

void readSerial() {
  while (Serial.available() > 0 && !question.isOpen) {
    char c = (char)Serial.read();
    if (c == '\n' && typedLength > 0) {
      typed[typedLength] = '\0';
      typedLength = 0;
      ask(typed, false);
    } else if (c != '\n' && c != '\r' && typedLength < sizeof typed - 1) {
      typed[typedLength++] = c;
    }
  }
}

void measure() {
  if (question.isOpen || (hasMeasured && millis() - measuredAtMs < FLEET_EVERY_MS)) return;
  hasMeasured = true;
  measuredAtMs = millis();
  char text[sizeof question.text];
  snprintf(text, sizeof text, "Is %.1f C above the limit of %.1f C? Answer yes or no.",
           temperatureRead(), LIMIT_C);
  ask(text, true);
}

bool connectToFleet() {
  if (mqtt.connected()) return true;
#ifdef FLEET_PASSWORD
  bool isConnected = mqtt.connect(FLEET_DEVICE, FLEET_DEVICE, FLEET_PASSWORD);
#else
  bool isConnected = mqtt.connect(FLEET_DEVICE);
#endif
  if (!isConnected) {
    Serial.print("No connection, state ");
    Serial.println(mqtt.state());
    delay(5000);
    return false;
  }
  // At QoS 0: of an answer at QoS 1 that is dropped, the broker would wait for the receipt for ever.
  mqtt.subscribe(ANSWER);
  Serial.println("Connected.");
  return true;
}

void setup() {
  Serial.begin(115200);
  pinMode(FAN_PIN, OUTPUT);
  WiFi.begin(WIFI_SSID, WIFI_PASSWORD);
  while (WiFi.status() != WL_CONNECTED) delay(250);
#ifdef FLEET_TLS
  network.setCACert(FLEET_CA);
#endif
  mqtt.setServer(FLEET_HOST, FLEET_PORT);
  mqtt.setCallback(onAnswer);
}

void loop() {
  if (!connectToFleet()) return;
  mqtt.loop();
  readSerial();
  measure();
  whenSilent();
}
