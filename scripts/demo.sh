#!/usr/bin/env bash
# Trains Fashion-MNIST through a PyTorchJob, as a user would: a server of its own, the example applied to it, the
# logs followed, then the saved checkpoint measured by another process. Fails below an accuracy of 0.88.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$repository"
muster="$repository/target/release/muster"
worker="$repository/target/release/muster-worker"
data="$muster_cache/fashion-mnist"
job=fashion-mnist
need python3 "install Python 3"
[ -x "$muster" ] && [ -x "$worker" ] || die "muster is not built: run make build"
[ -f "$data/complete" ] || die "the data set is missing: run make data"

folder=$(mktemp -d "${TMPDIR:-/tmp}/muster-demo.XXXXXX")
server=
stop() {
  local status=$?
  trap - EXIT INT TERM
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    kill -TERM "$server"
    wait "$server" || true
  fi
  if [ "$status" -ne 0 ]; then
    say "failed; the server's log is $folder/up.log"
    tail -n 20 "$folder/up.log" >&2 2>/dev/null || true
  fi
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

SECONDS=0
export KUBECONFIG="$folder/kubeconfig"
# The pods get no library path from here: the server gives the worker its own.
"$muster" up --data-dir "$folder/data" --listen 127.0.0.1:0 --kubeconfig "$KUBECONFIG" >"$folder/up.log" 2>&1 &
server=$!
for _ in $(seq 300); do
  kill -0 "$server" 2>/dev/null || die "muster up has ended"
  if [ -s "$KUBECONFIG" ] && "$muster" get nodes --no-headers 2>/dev/null | grep -qw Ready; then ready=1; break; fi
  sleep 0.1
done
[ "${ready:-}" ] || die "muster up was not ready within 30 s"

sed -e "s#/tmp/muster/fashion-mnist#$folder/work#" \
  -e "s#- --dataset=fashion-mnist#&\n                - --data=$data#" \
  examples/fashion-mnist/pytorchjob.yaml >"$folder/pytorchjob.yaml"
"$muster" apply -f "$folder/pytorchjob.yaml"
uid=$("$muster" get pytorchjob "$job" -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["metadata"]["uid"])')

"$muster" logs "$job" --follow | tee "$folder/job.log" &
logs=$!
"$muster" wait "pytorchjob/$job" --for Succeeded --timeout 15m >/dev/null || {
  "$muster" describe pytorchjob "$job" >&2 || true
  die "the job did not succeed"
}
wait "$logs" || true

# Read again from the pods: following may have begun late or ended early.
for rank in master-0 worker-0; do
  "$muster" logs "pod/$job-$rank" >"$folder/$rank.log"
done
hash_of() { sed -n 's/.*parameters sha256:\([0-9a-f]\{64\}\).*/\1/p' "$folder/$1.log" | tail -n 1; }
first=$(hash_of master-0)
second=$(hash_of worker-0)
[ -n "$first" ] && [ -n "$second" ] || die "a rank has not printed the hash of its parameters"

echo
echo "job uid             $uid"
echo "parameters, rank 0  $first"
echo "parameters, rank 1  $second"
[ "$first" = "$second" ] || die "the ranks hold different parameters"

"$worker" eval --checkpoint "$folder/work/checkpoints" --data "$data" >"$folder/eval.json"
echo "checkpoints         $folder/work/checkpoints"
echo "metrics             $folder/work/metrics.jsonl"
echo "server's log        $folder/up.log"
python3 - "$folder/eval.json" "$folder/work/metrics.jsonl" "$first" "$SECONDS" <<'SUMMARY'
import json, sys

evaluation, metrics, parameters, seconds = sys.argv[1:]
score = json.load(open(evaluation))
records = [json.loads(line) for line in open(metrics)]
finish = [record for record in records if record["event"] == "finish"][-1]
if score["parameters"] != parameters:
    sys.exit("demo: error: the checkpoint does not hold the parameters that the ranks ended with")
print(f"evaluated           {score['samples']} pictures, by a process of its own: accuracy {score['accuracy']:.4f}")
print(
    f"demo: accuracy={score['accuracy']:.2f} samples_per_second={finish['samples_per_second']:.0f} seconds={seconds}",
    flush=True,
)
if score["accuracy"] < 0.88:
    sys.exit("demo: error: the accuracy is below 0.88")
SUMMARY
