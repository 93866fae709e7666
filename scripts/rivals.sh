#!/usr/bin/env bash
# Puts what `muster bench --compare gloo,mpi` measures against into the cache folder: PyTorch's gloo by way of the
# environment that `make python` makes, and a program against Open MPI from the system's packages.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

target="$muster_cache/rivals"
sources="$repository/benches/rivals"

need gcc "install gcc"
need flock "install util-linux"
[ -x "$repository/.venv/bin/python" ] || die "there is no .venv: run make python"
if ! command -v mpicc >/dev/null 2>&1 || ! command -v mpirun >/dev/null 2>&1; then
  packages="openmpi-bin libopenmpi-dev"
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || die "Open MPI is missing: install $packages (as Debian names them)"
  say "installing $packages"
  apt-get update -qq || die "the lists of packages could not be fetched (see above)"
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null || die "the packages could not be installed (see above)"
fi

lock rivals
scratch rivals
# -march=native is for making and checking the data, between what is timed.
cc="-O3 -march=native -Wall -Wextra -Werror"
# shellcheck disable=SC2086
gcc $cc -shared -fPIC -o "$work/libdata.so" "$sources/data.c" || die "data.c could not be compiled"
# shellcheck disable=SC2086
mpicc $cc -o "$work/mpi" "$sources/mpi.c" "$sources/data.c" || die "mpi.c could not be compiled"
cp "$sources/gloo.py" "$work/"
ln -s "$(readlink -f "$repository/.venv")" "$work/python"
rm -rf "$target"
mv "$work" "$target"
chmod 755 "$target"
say "ready: gloo of torch $("$target/python/bin/python" -c 'from importlib.metadata import version; print(version("torch"))'), $(mpirun --version | head -1)"
