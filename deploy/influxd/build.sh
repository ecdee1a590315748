#!/usr/bin/env bash
# Builds InfluxDB 2.9.1 out of package registries, for development and CI: build.sh <where the binary goes>
#
# The server is a tool dependency of the Go module beside this script, whose go.sum pins everything;
# its Flux engine is a Rust library inside another Go module. Takes about six minutes on two cores.
set -euo pipefail

binary=${1:?usage: build.sh <where the binary goes>}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

missing=()
for tool in go cargo gcc pkg-config; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if ((${#missing[@]})); then
  echo "influxd can't be built here: ${missing[*]} missing (Go >= 1.25.10, Rust, gcc and pkg-config are needed)" >&2
  exit 1
fi

export GOTOOLCHAIN=local
wanted=$(sed -n 's/^go //p' "$here/go.mod")
found=$(go env GOVERSION | sed 's/^go//')
if [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -1) != "$wanted" ]]; then
  echo "influxd can't be built here: Go $found found, $wanted or newer needed" >&2
  exit 1
fi

# The library's folder asks for a Rust toolchain of its own; the installed one outranks it.
if command -v rustup >/dev/null; then
  RUSTUP_TOOLCHAIN=${RUSTUP_TOOLCHAIN:-$(rustup show active-toolchain | cut -d' ' -f1)}
  export RUSTUP_TOOLCHAIN
fi

mkdir -p "$(dirname "$binary")"
work=$(mktemp -d "$(dirname "$binary")/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

cd "$here"
echo "influxd 1/3: Go modules" >&2
go mod download

echo "influxd 2/3: the Flux library" >&2
flux=$(go list -m -f '{{.Dir}}' github.com/influxdata/flux)
RUSTFLAGS=-Awarnings CARGO_TARGET_DIR="$work/target" cargo build --quiet --release --locked \
  --manifest-path "$flux/libflux/Cargo.toml" -p flux --no-default-features --features cffi

# Alone in its folder: beside a shared library, the linker would take that one.
mkdir "$work/lib"
mv "$work/target/release/libflux.a" "$work/lib/"
cat >"$work/lib/flux.pc" <<PC
Name: flux
Description: the Flux engine
Version: $(go list -m -f '{{.Version}}' github.com/influxdata/flux | sed 's/^v//')
Cflags: -I$flux/libflux/include
Libs: -lflux -ldl -lpthread -lm
PC

# Go's cache remembers what pkg-config said but looks at CGO_LDFLAGS anew: the folder goes there, or
# the next build would link against one that is gone.
echo "influxd 3/3: the server" >&2
PKG_CONFIG_PATH="$work/lib" CGO_ENABLED=1 CGO_LDFLAGS="-O2 -g -L$work/lib" go build -trimpath \
  -tags sqlite_foreign_keys,sqlite_json -ldflags "-s -w -X main.version=v2.9.1" \
  -o "$work/influxd" github.com/influxdata/influxdb/v2/cmd/influxd

mv "$work/influxd" "$binary"
echo "influxd: $binary" >&2
