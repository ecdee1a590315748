#!/usr/bin/env bash
# Installs Debian packages when we are root, otherwise says the line: apt-install.sh <why> <package>…
set -euo pipefail

why=$1
shift
command=(apt-get install -y -q --no-install-recommends "$@")

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "$why. On Debian and Ubuntu: sudo ${command[*]}" >&2
  exit 1
fi
echo "$why: ${command[*]}" >&2
{ apt-get update -q && DEBIAN_FRONTEND=noninteractive "${command[@]}"; } >&2
