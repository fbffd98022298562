#!/bin/sh
# Submit a job and print its result, one line of JSON: ./job.sh hall-3 reading-7 < job.json
# The same id again is the same job: after whatever went wrong, run it again.
# Exit codes: 0 answered, 1 the job failed, 2 refused, 4 nothing heard in time, 75 busy: try again later.
set -eu

device=$1
topic=fleet/v1/dev/$device/jobs/$2
patience_s=${FLEET_PATIENCE_S:-120}
folder=$(mktemp -d)

listen() {
  mosquitto_sub -V mqttv311 -i "$device-job-$$" -q 1 -t "$topic/ack" -t "$topic/res" "$@"
}

# Whatever is said of the job from here on is kept for us.
listen -c -E
mkfifo "$folder/heard"
listen -c -W "$patience_s" -F '%t %p' >"$folder/heard" 2>/dev/null &
listener=$!
trap '{ kill "$listener"; wait "$listener"; } 2>/dev/null || true; listen -E; rm -rf "$folder"' EXIT

mosquitto_pub -V mqttv311 -q 1 -t "$topic/submit" -s
while read -r heard message; do
  case "$heard $message" in
    */ack*'"status":"accepted"'*) ;; # It is stored: it will be answered, come what may.
    */ack*'"code":"busy"'*) echo "$message" >&2; exit 75 ;;
    */ack*) echo "$message" >&2; exit 2 ;;
    */res*'"status":"ok"'*) echo "$message"; exit 0 ;;
    */res*) echo "$message"; exit 1 ;;
  esac
done <"$folder/heard"
echo "Nothing final heard of $2 within $patience_s s; the same command asks again." >&2
exit 4
