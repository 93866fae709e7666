#!/usr/bin/env bash
# Installs strace where apt can; the test that traces system calls says when it has none.
set -euo pipefail
if command -v strace >/dev/null; then exit 0; fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get install -y -q strace >/dev/null 2>&1 || { apt-get update -q >/dev/null && apt-get install -y -q strace >/dev/null; }
else
  echo "strace is not installed: the test that traces system calls will be skipped" >&2
fi
