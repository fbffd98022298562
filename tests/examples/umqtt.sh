#!/usr/bin/env bash
# Puts umqtt/simple.py into a folder: umqtt.sh PYTHON FOLDER
# The package has no setup.py, for MicroPython's own installer needs none. pip fetches it, checks its
# hash and unpacks it, then cannot build it: it is told to leave what it unpacked.
set -euo pipefail
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
TMPDIR=$work "$1" -m pip download --quiet --no-clean --no-deps --dest "$work" -r "$here/umqtt.txt" \
  >"$work/log" 2>&1 || true
source=$(find "$work" -path '*/umqtt/simple.py')
[ -n "$source" ] || { cat "$work/log" >&2; exit 1; }
mkdir -p "$2/umqtt"
# Since 1.4, which firmware has and the package index has not, `ssl` is a context.
sed -e 's/ussl\.wrap_socket(self\.sock, \*\*self\.ssl_params)/self.ssl.wrap_socket(self.sock, server_hostname=self.server)/' \
  -e '/^            import ussl$/d' "$source" >"$2/umqtt/simple.py"
grep -q 'self.ssl.wrap_socket' "$2/umqtt/simple.py"
