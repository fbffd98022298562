#!/bin/sh
# Makes a freshly written board a worker of its fleet, once: edgefleet, its model, a user of its own,
# a certificate for a key that never leaves it, the service. Every step may be cut short by the
# power and is then done anew. `fleet image render` wrote it; docs/first-boot.md tells of it.
set -eu
umask 022
here=/etc/edgefleet/first-boot
work=/opt/edgefleet/.first-boot
card=
# shellcheck source=/dev/null
. "$here/settings"

say() { echo "first-boot: $*"; }
fail() {
  code=$1
  shift
  echo "first-boot: $* [$code]" >&2
  exit 1
}

find_card() {
  # Archives lie beside what cloud-init read: on the boot partition, or on a medium called CIDATA.
  for label in CIDATA cidata; do
    if [ -e "/dev/disk/by-label/$label" ] && [ ! -e /run/edgefleet-card/edgefleet ]; then
      mkdir -p /run/edgefleet-card
      mount -o ro "/dev/disk/by-label/$label" /run/edgefleet-card || true
    fi
  done
  for folder in /boot/firmware /boot /run/edgefleet-card /var/lib/cloud/seed/nocloud; do
    if [ -d "$folder/edgefleet" ]; then
      card=$folder/edgefleet
      return
    fi
  done
}

archive() { # archive FILE SHA256 URL: prints where it is, once it is known to be the right one
  path=$card/$1
  if [ -n "$3" ]; then
    path=$work/$1
    "$PYTHON" -c '
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as there, open(sys.argv[2], "wb") as here:
    shutil.copyfileobj(there, here)' "$3" "$path" || fail not_fetched "$3 cannot be fetched; trying again"
  fi
  [ -e "$path" ] || fail no_archive "the card has no edgefleet/$1: copy the whole folder that was rendered"
  echo "$2  $path" | sha256sum --check --status \
    || fail bad_archive "$path is not what was rendered: copy it again"
  echo "$path"
}

install_release() {
  home=/opt/edgefleet/$VERSION
  [ ! -e "$home/.whole" ] || return 0
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail python_too_old "edgefleet needs Python 3.11: write a newer image, or render with --python"
  if [ -n "$WHEELS_PYTHON" ]; then
    "$PYTHON" -c 'import sys, platform
sys.exit(sys.argv[1] != "%d.%d-%s" % (*sys.version_info[:2], platform.machine()))' "$WHEELS_PYTHON" \
      || fail wrong_wheels "the card has wheels for $WHEELS_PYTHON, which this board is not"
  fi
  rm -rf "$home"
  mkdir -p "$home/wheels"
  if ! "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null; then
    say "installing python3-venv"
    apt-get update -q && apt-get install -qy --no-install-recommends python3-venv \
      || fail no_venv "the image has no python3-venv, and it cannot be fetched"
  fi
  say "installing edgefleet $VERSION"
  "$PYTHON" -m venv "$home/venv"
  if [ -n "$WHEELS_SHA256" ]; then
    wheels=$(archive wheels.tar "$WHEELS_SHA256" "$WHEELS_URL")
    tar --extract --file "$wheels" --directory "$home/wheels" --no-same-owner
    set -- --no-index --find-links "$home/wheels"
  else
    set --
  fi
  "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" \
    "edgefleet[edge]==$VERSION" || fail not_installed "edgefleet $VERSION cannot be installed"
  "$home/venv/bin/fleet" --version | grep -qF "$VERSION" || fail not_installed "it does not start"
  rm -rf "$home/wheels"
  # As the role `release` does: a version counts once its mark is on the disk.
  sync -f "$home"
  touch "$home/.whole"
  sync -f "$home/.whole"
}

switch() { # switch FOLDER NAME: a link is renamed into its place, so there is always a whole one
  ln -sfn "$2" "$1/.current"
  mv -fT "$1/.current" "$1/current"
  sync -f "$1"
}

install_model() {
  [ -n "$MODEL" ] || return 0
  models=/opt/edgefleet/models
  if [ ! -e "$models/$MODEL" ]; then
    say "putting the model $MODEL there"
    found=$(archive model.tar "$MODEL_SHA256" "$MODEL_URL")
    rm -rf "$models/.new"
    mkdir -p "$models/.new"
    tar --extract --file "$found" --directory "$models/.new" --no-same-owner
    [ -e "$models/.new/manifest.json" ] || fail bad_archive "the model's archive has no manifest.json"
    sync -f "$models/.new"
    mv -T "$models/.new" "$models/$MODEL"
  fi
  switch "$models" "$MODEL"
}

make_places() {
  id edgefleet-worker > /dev/null 2>&1 || useradd --system --user-group --no-create-home \
    --home-dir /var/lib/edgefleet/worker --shell /usr/sbin/nologin edgefleet-worker
  install -d -m 0755 /var/lib/edgefleet
  install -d -m 0700 /etc/edgefleet/identities
  install -d -m 0700 -o edgefleet-worker -g edgefleet-worker /var/lib/edgefleet/worker
  chgrp edgefleet-worker /etc/edgefleet/worker.toml
  chmod 0640 /etc/edgefleet/worker.toml
}

join_fleet() {
  say "asking for a certificate"
  # The service gets its key as a credential; here it is where that is taken from.
  EDGEFLEET_WORKER_BROKER__TLS__KEY_FILE=/etc/edgefleet/identities/worker.key \
    /opt/edgefleet/current/venv/bin/edge-worker join --config /etc/edgefleet/worker.toml \
    --token-file "$here/token" ${JOIN_AT:+--at "$JOIN_AT"} --timeout-s 3600
  chown edgefleet-worker: /var/lib/edgefleet/worker/cert.pem
}

limit_memory() {
  # Raspberry Pi OS turns the memory controller off, without which MemoryMax= means nothing.
  line=/boot/firmware/cmdline.txt
  [ "$BOARD" = rpi ] && [ -f "$line" ] || return 0
  ! grep -qw cgroup_enable=memory "$line" || return 0
  sed '1s/$/ cgroup_enable=memory cgroup_memory=1/' "$line" > "$line.new"
  sync -f "$line.new"
  mv -f "$line.new" "$line"
  restart=yes
}

clear_card() {
  # The token is used up, and worth nothing any more. What is left of it confuses people.
  for folder in /boot/firmware /boot /var/lib/cloud/seed/nocloud; do
    [ ! -w "$folder/user-data" ] || sed -i 's/fleet1\.[A-Za-z0-9_.-]*/used-up/' "$folder/user-data"
    # The words after it keep the initramfs of Bookworm from taking this line for its own.
    rm -f "$folder/firstrun.sh" || true
  done
  rm -rf "$work"
  case $card in /boot/* | /var/*) rm -rf "$card" ;; esac
}

restart=
mkdir -p "$work"
find_card
install_release
switch /opt/edgefleet "$VERSION"
install_model
make_places
join_fleet
limit_memory
clear_card
systemctl daemon-reload
systemctl try-restart systemd-journald || true
systemctl enable --quiet edgefleet-worker
systemctl disable --quiet first-boot-edgefleet
say "done"
rm -rf "$here" /etc/systemd/system/first-boot-edgefleet.service
if [ -n "$restart" ]; then
  systemctl reboot
else
  systemctl start --no-block edgefleet-worker
fi
