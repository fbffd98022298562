// PubSubClient 2.8 as far as the sketch uses it, on libmosquitto. Its limits are the library's own:
// one buffer of MQTT_MAX_PACKET_SIZE for every packet, publications at QoS 0 alone, a packet that
// arrives and does not fit is dropped without a word, and messages are handed over within loop().
#pragma once

#include <deque>
#include <string>

#include "WiFi.h"

#ifndef MQTT_MAX_PACKET_SIZE
#define MQTT_MAX_PACKET_SIZE 256
#endif
#define MQTT_MAX_HEADER_SIZE 5
#define MQTT_KEEPALIVE 15

struct mosquitto;
struct mosquitto_message;

class PubSubClient {
 public:
  typedef void (*Callback)(char *, uint8_t *, unsigned int);

  explicit PubSubClient(Client &client) : client_(client) {}
  PubSubClient &setServer(const char *host, uint16_t port);
  PubSubClient &setCallback(Callback callback);
  boolean connect(const char *id) { return connect(id, nullptr, nullptr); }
  boolean connect(const char *id, const char *user, const char *password);
  boolean connected() { return state_ == 0; }
  int state() { return state_; }
  boolean loop();
  boolean publish(const char *topic, const char *payload);
  boolean subscribe(const char *topic);

 private:
  struct Packet {
    std::string topic, payload;
  };

  static void onConnect(mosquitto *, void *self, int code);
  static void onMessage(mosquitto *, void *self, const mosquitto_message *message);
  void end(int state);

  Client &client_;
  std::string host_;
  uint16_t port_ = 0;
  Callback callback_ = nullptr;
  mosquitto *link_ = nullptr;
  int state_ = -1;  // MQTT_DISCONNECTED
  int answer_ = -1;
  std::deque<Packet> arrived_;
};
