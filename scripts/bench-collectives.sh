#!/usr/bin/env bash
# Measures all-reduce beside gloo and Open MPI: 2 ranks, 4 ranks, 2 ranks over TCP; the other operations with 2 ranks;
# a bare loop in C, to see what two ranks in shared memory cost at the least; how 256 ranks meet; and, as root, two
# hosts of two ranks on a link of 1 Gbit/s. Tables, raw data and charts go to benches/results/DATE-MACHINE. On an
# otherwise idle machine, or it is void.
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
  "$muster" bench "$@" --raw "$results/$name.jsonl" --svg "$results/$name.svg" | tee "$results/$name.txt"
  # Whose folders they were is nobody's business.
  sed -i "s|$repository/||g; s|$muster_cache|~/.cache/muster|g" "$results/$name.jsonl"
}

measure all-reduce-2-ranks all_reduce --compare gloo,mpi --ranks 2
measure all-reduce-4-ranks all_reduce --compare gloo,mpi --ranks 4
measure all-reduce-2-ranks-tcp all_reduce --compare gloo,mpi --ranks 2 --transport tcp
for operation in reduce_scatter all_gather broadcast reduce gather scatter send_recv; do
  measure "${operation//_/-}-2-ranks" "$operation" --compare mpi --sizes 4KiB,1MiB,16MiB --seconds 1
done
say "a bare loop in C"
sketch=$(mktemp)
cc -O3 -march=native -o "$sketch" "$repository/benches/sketch.c" -lpthread
"$sketch" | tee "$results/sketch.jsonl"
rm -f "$sketch"
say connect
(cd "$repository" && cargo bench --quiet --locked --bench connect) | tee "$results/connect.jsonl"
say link
if [ "$(id -u)" = 0 ] && command -v ip >/dev/null 2>&1 && command -v tc >/dev/null 2>&1; then
  (cd "$repository" && cargo test --quiet --release --locked -p muster-collectives --test network_namespaces -- --ignored --nocapture) |
    grep -E '^(flat|hierarchical)' | tee "$results/link.txt"
else
  say "the link needs root, ip and tc: left out"
fi
