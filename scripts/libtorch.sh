#!/usr/bin/env bash
# Fills the cache with the small libtorch that muster-worker is built against and runs with: headers
# and the five libraries that training on CPUs needs, about 490 MB instead of the 4 GB of a whole
# PyTorch. There is no CPU-only libtorch in the package index, so it is cut out of the wheels.
# The finished folder appears at once, by a rename, and is never downloaded again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

version=2.11.0
target="$muster_cache/libtorch-$version"

link() {
  mkdir -p "$repository/.cache"
  ln -sfn "$target" "$repository/.cache/libtorch"
}

if [ -f "$target/build-version" ]; then link; exit 0; fi
need python3 "install Python 3"
need gcc "install gcc and g++"
need flock "install util-linux"
python3 -m pip --version >/dev/null 2>&1 || die "Python has no pip: install python3-pip and python3-venv"
[ "$(uname -sm)" = "Linux x86_64" ] || die "only Linux on x86_64 is supported, this is $(uname -sm)"

lock libtorch
if [ -f "$target/build-version" ]; then link; exit 0; fi
scratch libtorch

cat >"$work/requirements.txt" <<'PINS'
torch==2.11.0 --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
PINS
say "downloading the wheels of torch $version (540 MB)"
# The headers and libraries do not depend on the version of Python, so one wheel serves every machine.
python3 -m pip download --quiet --no-deps --require-hashes --only-binary=:all: \
  --python-version 3.11 --implementation cp --abi cp311 --abi none \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
  --dest "$work/wheels" --requirement "$work/requirements.txt" \
  || die "the wheels could not be downloaded (see above); check the network and run make libtorch again"

say "unpacking into $target"
python3 - "$work/wheels" "$work/libtorch" <<'UNPACK' || die "a wheel could not be unpacked"
import pathlib, shutil, sys, zipfile

wheels, target = map(pathlib.Path, sys.argv[1:])
libraries = {
    "torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcupti.so.13",
}
found = set()
(target / "lib").mkdir(parents=True)
for wheel in sorted(wheels.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename
            if name in libraries:
                found.add(name)
                path = target / "lib" / pathlib.PurePosixPath(name).name
            elif name.startswith("torch/include/") and ".." not in name:
                path = target / name.removeprefix("torch/")
            elif name.startswith("torch-") and "/licenses/LICENSE" in name:
                path = target / "LICENSE"
            else:
                continue
            if entry.is_dir():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
if found != libraries:
    sys.exit(f"missing from the wheels: {sorted(libraries - found)}")
UNPACK

# tch asks the linker for -ltorch. The real libtorch.so pulls in CUDA, so an empty one stands in for it;
# the linker then drops it, as nothing is taken from it.
gcc -shared -Wl,-soname,libtorch.so -o "$work/libtorch/lib/libtorch.so" -x c /dev/null || die "gcc cannot link a shared library"
chmod 755 "$work/libtorch/lib"/*.so*
printf '%s\n' "$version" >"$work/libtorch/build-version"
rm -rf "$target"
mv "$work/libtorch" "$target"
link
say "ready: $target"
