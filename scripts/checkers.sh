#!/usr/bin/env bash
# Runs the collectives' tests under tools that not every machine has; says what is missing, and that is no failure.
# usage: scripts/checkers.sh miri|tsan|helgrind
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

missing() {
  echo "not checked with $1: $2 is missing"
  exit 0
}

# Of the nightly toolchain, since no stable one has either.
component() {
  command -v rustup >/dev/null || missing "$1" "rustup, with a nightly toolchain and its component $2,"
  local installed
  installed=$(rustup component list --toolchain nightly --installed 2>/dev/null) || installed=
  grep -q "^$2" <<<"$installed" ||
    missing "$1" "the component $2 (rustup toolchain install nightly --component $2)"
}

case ${1:-} in
miri)
  component Miri miri
  component Miri rust-src
  # What needs no socket, no shared mapping and no thousand cases, which an interpreter takes minutes for. Schedules
  # have thousands and are safe code throughout.
  MIRIFLAGS="-Zmiri-disable-isolation" CARGO_TARGET_DIR=$target/miri \
    cargo +nightly miri test --locked -p muster-collectives --lib -- \
    call:: config:: element:: error:: order:: pending:: reduce:: shm::protocol:: shm::moved:: shm::message:: shm::tests \
    --skip any_bytes --skip sixteen_bit_floats_are_converted
  ;;
tsan)
  component ThreadSanitizer rust-src
  # The standard library is built along: its locks have to be seen.
  host=$(rustc -vV | sed -n 's/^host: //p')
  RUSTFLAGS="-Zsanitizer=thread" CARGO_TARGET_DIR=$target/tsan \
    cargo +nightly test --release --locked -p muster-collectives -Zbuild-std --target "$host" \
    --test failure --test moving --test operations
  ;;
helgrind)
  command -v valgrind >/dev/null || missing helgrind "valgrind (package valgrind)"
  binary=$(cargo test --release --locked -p muster-collectives --test processes --no-run 2>&1 |
    sed -n 's/.*Executable.*(\(.*\))/\1/p')
  logs=$(mktemp -d)
  trap 'rm -rf "$logs"' EXIT
  # Without the large process: all that it has would be shadowed, and valgrind knows no futex_waitv.
  # A log for each process: a rank that is killed gives no exit status. Valgrind hides AVX-512, which it does not know,
  # so the kernels for AVX2 are what runs.
  # So many callers that the functions which the suppressions name are among them.
  status=0
  valgrind -q --tool=helgrind --trace-children=yes --history-level=none --num-callers=30 --log-file="$logs/%p" \
    --suppressions=collectives/tests/valgrind/helgrind.supp "$binary" --test-threads=1 --skip large_process ||
    status=$?
  if grep -hE "^==[0-9]+== +[A-Z]" "$logs"/* | grep -v "WARNING: unhandled"; then
    # The reader ends before the writers do.
    grep -hv "^--" "$logs"/* | head -100 || true
    echo "helgrind has found something" >&2
    exit 1
  fi
  exit "$status"
  ;;
*)
  echo "usage: scripts/checkers.sh miri|tsan|helgrind" >&2
  exit 2
  ;;
esac
