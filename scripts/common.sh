# Sourced by the scripts beside it: where things are kept, and how a script fails.

muster_cache="${XDG_CACHE_HOME:-$HOME/.cache}/muster"
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }
die() { say "error: $*"; exit 1; }

need() { command -v "$1" >/dev/null 2>&1 || die "$1 is missing: $2"; }

# One filler at a time: a second waits here, then finds the work done.
lock() {
  mkdir -p "$muster_cache" || die "cannot write to $muster_cache"
  exec 9>"$muster_cache/.$1.lock"
  flock 9
}

# A folder that is removed when the script ends, on the same file system as what it becomes.
scratch() {
  work=$(mktemp -d "$muster_cache/.$1.XXXXXX") || die "cannot make a folder in $muster_cache"
  trap 'rm -rf "$work"' EXIT
}
