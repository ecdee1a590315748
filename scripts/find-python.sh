#!/usr/bin/env bash
# Prints the interpreter that .venv is made with: Python 3.11 to 3.13 with venv, pip and C headers.
#
# A name on PATH proves nothing (pyenv's shims exist for versions that aren't selected), so each
# candidate is run. cryptofeed (on 3.11) or its JSON parser (above) is compiled at installation: that
# takes a compiler and Python's headers. What Debian has packages for is installed when we are root.
set -euo pipefail

probe='
import sys
if not (3, 11) <= sys.version_info < (3, 14): sys.exit(1)
import pathlib, sysconfig
missing = []
try: import ensurepip, venv
except ImportError: missing.append("venv")
if not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists(): missing.append("dev")
print(sys.executable, "python%d.%d" % sys.version_info[:2], *missing)
'

find_python() { # the first candidate that lacks nothing, otherwise the first that runs
  local name path found best=""
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    while read -r path; do
      found=$("$path" -c "$probe" 2>/dev/null) || continue
      if [[ $(wc -w <<<"$found") == 2 ]]; then
        echo "$found"
        return
      fi
      best=${best:-$found}
    done < <(type -ap "$name")
  done
  echo "$best"
}

read -r python version missing <<<"$(find_python)" || true
if [[ -z ${python:-} ]]; then
  echo "No Python 3.11 to 3.13 here that runs. Install one, or name it: make venv PYTHON=/path/to/python3.12" >&2
  exit 1
fi

packages=()
for part in $missing; do packages+=("$version-$part"); done
compiler=$([[ $version == python3.11 ]] && echo gcc || echo g++)
command -v "$compiler" >/dev/null || packages+=("$compiler" libc6-dev)

if ((${#packages[@]})); then
  "$(dirname "$0")/apt-install.sh" "$python lacks what the installation needs" "${packages[@]}"
fi
echo "$python"
