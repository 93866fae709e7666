#!/usr/bin/env bash
# Makes .venv: PyTorch whole and the official SDK, for the tests and examples that need them. The
# environment itself (4 GB) is kept in the cache under a name made of what it was made from, so every
# checkout of the same requirements shares it and none installs it twice.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

requirements="$repository/scripts/requirements.txt"
need python3 "install Python 3"
need flock "install util-linux"
identity=$(python3 -c 'import sys; print(sys.implementation.cache_tag, sys.base_prefix)') || die "python3 does not run"
digest=$({ printf '%s\n' "$identity"; cat "$requirements"; } | sha256sum | cut -c1-12)
target="$muster_cache/venv-$digest"

link() {
  if [ -e "$repository/.venv" ] && [ ! -L "$repository/.venv" ]; then
    die ".venv is not a link that this script made; move it away and run make python again"
  fi
  ln -sfn "$target" "$repository/.venv"
}

if [ -f "$target/complete" ]; then link; exit 0; fi
python3 -c 'import venv, ensurepip' 2>/dev/null || die "Python has no venv: install python3-venv"
lock python
if [ -f "$target/complete" ]; then link; exit 0; fi

# The folder must be made where it will stay, since an environment knows its own path: the stamp at the
# end, not a rename, says that it is whole.
rm -rf "$target"
say "installing PyTorch and the SDK into $target (4 GB, some minutes)"
python3 -m venv "$target" || die "the environment could not be made in $target"
# Byte-compiling is the slow part, and most of the modules are never imported.
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --only-binary=:all: --requirement "$requirements" \
  || die "the packages could not be installed (see above); check the network and run make python again"
"$target/bin/python" -c 'import torch, kubeflow.training, pytest' || die "the installed packages cannot be imported"
touch "$target/complete"
link
say "ready: $target"
