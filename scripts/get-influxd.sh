#!/usr/bin/env bash
# Makes InfluxDB 2 available to the tests: get-influxd.sh <where a built executable goes>
#
# INFLUXD, PATH, and what was built earlier come first. In CI (CI=true) it is required; elsewhere one
# line says that the tests which need it are skipped.
set -euo pipefail

binary=${1:?usage: get-influxd.sh <where a built executable goes>}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -n ${INFLUXD:-} ]] || command -v influxd >/dev/null || [[ -x $binary ]]; then exit 0; fi

packages=()
command -v gcc >/dev/null || packages+=(gcc libc6-dev)
command -v pkg-config >/dev/null || packages+=(pkg-config)
if command -v go >/dev/null && command -v cargo >/dev/null && ((${#packages[@]})); then
  "$here/scripts/apt-install.sh" "influxd is built with a C compiler" "${packages[@]}" || true
fi

echo "influxd: building InfluxDB 2.9.1 (once, about six minutes on two cores)" >&2
if "$here/deploy/influxd/build.sh" "$binary"; then exit 0; fi

if [[ ${CI:-} == true ]]; then exit 1; fi
echo "influxd: none to be had on this machine; tests that need it are skipped" >&2
