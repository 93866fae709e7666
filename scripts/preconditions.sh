#!/usr/bin/env bash
# Says in one line what a build or test of Muster needs and this machine lacks. What can be installed is installed by make.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
want=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
if command -v cargo >/dev/null; then
  have=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
  [ "$have" = "$want" ] || missing+=("cargo $want (found ${have:-none that runs})")
else
  missing+=("cargo $want")
fi
command -v gcc >/dev/null || missing+=("gcc")
command -v g++ >/dev/null || missing+=("g++")

if [ "${1:-}" != build ]; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || missing+=("python3 >= 3.9")
  command -v go >/dev/null || missing+=("go")
  if command -v kubectl >/dev/null; then
    minor=$(kubectl version --client -o json 2>/dev/null | python3 -c 'import json,re,sys; print(re.sub(r"\D.*", "", json.load(sys.stdin)["clientVersion"]["minor"]))' 2>/dev/null || echo 0)
    [ "${minor:-0}" -ge 30 ] || missing+=("kubectl >= 1.30 (found 1.${minor:-?})")
  else
    missing+=("kubectl >= 1.30")
  fi
fi

if [ "${#missing[@]}" -gt 0 ]; then
  list=$(printf '%s, ' "${missing[@]}")
  echo "muster: missing on this machine: ${list%, }" >&2
  exit 1
fi
