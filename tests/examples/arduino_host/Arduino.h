// What the sketch needs of the ESP32's Arduino core, on a PC. The serial line is the standard streams.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

typedef bool boolean;
enum { LOW, HIGH };
enum { INPUT, OUTPUT };

unsigned long millis();
void delay(unsigned long ms);
void pinMode(uint8_t pin, uint8_t mode);
void digitalWrite(uint8_t pin, uint8_t level);  // prints `pin 2 HIGH`
float temperatureRead();                        // of FLEET_HOST_TEMPERATURE_C

struct HostSerial {
  void begin(unsigned long) {}
  int available();
  int read();
  void print(const char *text) { fputs(text, stdout); }
  void println(const char *text) { puts(text); }
  void println(int number) { printf("%d\n", number); }
};
extern HostSerial Serial;

void setup();
void loop();
