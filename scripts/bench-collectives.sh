#!/usr/bin/env bash
# Measures all-reduce beside gloo and Open MPI: 2 ranks, 4 ranks, 2 ranks over
# TCP. Tables, raw data and charts go to benches/results/DATE-MACHINE. On an otherwise idle machine, or it is void.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

muster="$repository/target/release/muster"
[ -x "$muster" ] || die "there is no target/release/muster: run make build"

words=$(grep -m1 '^model name' /proc/cpuinfo | cut -d: -f2 | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '\n' | grep . | head -4 | paste -sd-)
results="$repository/benches/results/$(date +%F)-${words:-unknown}-$(nproc)-cores"
mkdir -p "$results"

measure() {
  local name=$1; shift
  say "$name"
  "$muster" bench allreduce --compare gloo,mpi "$@" --raw "$results/$name.jsonl" --svg "$results/$name.svg" | tee "$results/$name.txt"
}

measure all-reduce-2-ranks --ranks 2
measure all-reduce-4-ranks --ranks 4
measure all-reduce-2-ranks-tcp --ranks 2 --transport tcp
