#!/usr/bin/env bash
# Fills the cache with the Fashion-MNIST data set: four gzipped IDX files, 30 MB. They come from the Debian
# package where apt has it (no root needed, nothing is installed), else from the data set's own address.
# The checksums hold for both.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

target="$muster_cache/fashion-mnist"
package=dataset-fashion-mnist
address=http://fashion-mnist.s3-website.eu-central-1.amazonaws.com
files="train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz"

# The sums are of the unpacked files: the Debian package has packed them anew.
check() {
  while read -r sum file; do
    [ "$(gzip -dc "$1/$file" | sha256sum | cut -d' ' -f1)" = "$sum" ] || { say "$file is not what it should be"; return 1; }
  done <<'SUMS'
c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888  train-images-idx3-ubyte.gz
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9  train-labels-idx1-ubyte.gz
5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b  t10k-images-idx3-ubyte.gz
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34  t10k-labels-idx1-ubyte.gz
SUMS
}

from_apt() {
  command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
  (
    cd "$work"
    apt-get download -qq "$package" >/dev/null 2>&1 \
      || { apt-get update -qq >/dev/null 2>&1; apt-get download -qq "$package" >/dev/null 2>&1; }
  ) || return 1
  dpkg-deb -x "$work"/$package*.deb "$work/package" || return 1
  mkdir -p "$work/data"
  for file in $files; do
    find "$work/package" -name "$file" -exec cp {} "$work/data/" \;
  done
  check "$work/data"
}

from_address() {
  mkdir -p "$work/data"
  python3 - "$address" "$work/data" $files <<'FETCH'
import pathlib, sys, urllib.request
address, folder, *names = sys.argv[1:]
for name in names:
    with urllib.request.urlopen(f"{address}/{name}", timeout=60) as answer:
        data = answer.read(64 << 20)
    (pathlib.Path(folder) / name).write_bytes(data)
FETCH
  check "$work/data"
}

if [ -f "$target/complete" ]; then exit 0; fi
need python3 "install Python 3"
need flock "install util-linux"
lock data
if [ -f "$target/complete" ]; then exit 0; fi
scratch data
say "downloading Fashion-MNIST (30 MB)"
from_apt || from_address || die "Fashion-MNIST came neither from apt ($package) nor from $address"
touch "$work/data/complete"
rm -rf "$target"
mv "$work/data" "$target"
say "ready: $target"
