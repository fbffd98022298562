// Runs a sketch on a PC until it is ended: its loop, its serial line, its MQTT.
#include <fcntl.h>
#include <mosquitto.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "PubSubClient.h"

HostSerial Serial;
HostWiFi WiFi;

static const auto started = std::chrono::steady_clock::now();
static bool serialEnded = false;

unsigned long millis() {
  auto span = std::chrono::steady_clock::now() - started;
  return std::chrono::duration_cast<std::chrono::milliseconds>(span).count();
}

void delay(unsigned long ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

void pinMode(uint8_t, uint8_t) {}

void digitalWrite(uint8_t pin, uint8_t level) { printf("pin %d %s\n", pin, level ? "HIGH" : "LOW"); }

float temperatureRead() {
  const char *given = getenv("FLEET_HOST_TEMPERATURE_C");
  return given ? strtof(given, nullptr) : 20.0f;
}

int HostSerial::available() {
  pollfd in = {STDIN_FILENO, POLLIN, 0};
  return !serialEnded && poll(&in, 1, 0) > 0 ? 1 : 0;
}

int HostSerial::read() {
  char c;
  if (::read(STDIN_FILENO, &c, 1) == 1) return (unsigned char)c;
  serialEnded = true;
  return -1;
}

PubSubClient &PubSubClient::setServer(const char *host, uint16_t port) {
  host_ = host;
  port_ = port;
  return *this;
}

PubSubClient &PubSubClient::setCallback(Callback callback) {
  callback_ = callback;
  return *this;
}

static std::string fileOf(const char *pem) {
  char path[] = "/tmp/sketch-ca-XXXXXX";
  int file = mkstemp(path);
  if (file < 0 || write(file, pem, strlen(pem)) != (ssize_t)strlen(pem)) abort();
  close(file);
  return path;
}

boolean PubSubClient::connect(const char *id, const char *user, const char *password) {
  end(-2);  // MQTT_CONNECT_FAILED
  size_t bytes = MQTT_MAX_HEADER_SIZE + 10 + 2 + strlen(id);
  for (const char *one : {user, password}) bytes += one ? 2 + strlen(one) : 0;
  if (bytes > MQTT_MAX_PACKET_SIZE) return false;
  link_ = mosquitto_new(id, true, this);
  mosquitto_int_option(link_, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V311);
  mosquitto_connect_callback_set(link_, onConnect);
  mosquitto_message_callback_set(link_, onMessage);
  if (user) mosquitto_username_pw_set(link_, user, password);
  if (client_.rootCa) {
    std::string path = fileOf(client_.rootCa);
    int taken = mosquitto_tls_set(link_, path.c_str(), nullptr, nullptr, nullptr, nullptr);
    if (taken == MOSQ_ERR_SUCCESS) taken = mosquitto_connect(link_, host_.c_str(), port_, MQTT_KEEPALIVE);
    unlink(path.c_str());
    if (taken != MOSQ_ERR_SUCCESS) return false;
  } else if (mosquitto_connect(link_, host_.c_str(), port_, MQTT_KEEPALIVE) != MOSQ_ERR_SUCCESS) {
    return false;
  }
  answer_ = -1;
  unsigned long since = millis();
  while (answer_ < 0 && millis() - since < 15000) {
    if (mosquitto_loop(link_, 100, 1) != MOSQ_ERR_SUCCESS) break;
  }
  state_ = answer_ < 0 ? -4 : answer_;  // MQTT_CONNECTION_TIMEOUT
  return connected();
}

boolean PubSubClient::loop() {
  if (!connected()) return false;
  if (mosquitto_loop(link_, 10, 1) != MOSQ_ERR_SUCCESS) {
    state_ = -3;  // MQTT_CONNECTION_LOST
    return false;
  }
  while (!arrived_.empty()) {
    Packet packet = arrived_.front();
    arrived_.pop_front();
    if (callback_) callback_(&packet.topic[0], (uint8_t *)&packet.payload[0], packet.payload.size());
  }
  return true;
}

boolean PubSubClient::publish(const char *topic, const char *payload) {
  size_t bytes = MQTT_MAX_HEADER_SIZE + 2 + strlen(topic) + strlen(payload);
  if (!connected() || bytes > MQTT_MAX_PACKET_SIZE) return false;
  return mosquitto_publish(link_, nullptr, topic, strlen(payload), payload, 0, false) == MOSQ_ERR_SUCCESS;
}

boolean PubSubClient::subscribe(const char *topic) {
  return connected() && mosquitto_subscribe(link_, nullptr, topic, 0) == MOSQ_ERR_SUCCESS;
}

void PubSubClient::onConnect(mosquitto *, void *self, int code) {
  static_cast<PubSubClient *>(self)->answer_ = code;
}

void PubSubClient::onMessage(mosquitto *, void *self, const mosquitto_message *message) {
  size_t rest = 2 + strlen(message->topic) + (message->qos ? 2 : 0) + message->payloadlen;
  size_t bytes = 1 + (rest < 128 ? 1 : rest < 16384 ? 2 : 3) + rest;
  if (bytes > MQTT_MAX_PACKET_SIZE) {
    fprintf(stderr, "dropped a packet of %zu bytes\n", bytes);
    return;
  }
  std::string payload((const char *)message->payload, message->payloadlen);
  static_cast<PubSubClient *>(self)->arrived_.push_back({message->topic, payload});
}

void PubSubClient::end(int state) {
  if (link_) mosquitto_destroy(link_);
  link_ = nullptr;
  state_ = state;
  arrived_.clear();
}

int main() {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  mosquitto_lib_init();
  setup();
  while (true) loop();
}
