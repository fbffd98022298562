#!/bin/sh
# Ask the fleet in plain text and print its answer: ./ask.sh hall-3 "What is the capital of France?"
# Where the broker is and who we are to it stands in the configuration of Mosquitto's tools (README.md).
set -eu

device=$1
question=$2
topic=fleet/v1/dev/$device
patience_s=${FLEET_PATIENCE_S:-60}

listen() {
  mosquitto_sub -V mqttv311 -i "$device-ask-$$" -q 1 -t "$topic/answer" "$@"
}

# A session that outlives its connection is there before the question is asked: from here on the
# broker keeps the answer until we fetch it. At the end, a clean session takes its place.
listen -c -E
trap 'listen -E' EXIT

mosquitto_pub -V mqttv311 -q 1 -t "$topic/ask" -m "$question"
if ! listen -c -C 1 -W "$patience_s"; then
  echo "No answer within $patience_s s. Does the fleet run, and may we speak as $device?" >&2
  exit 4
fi
