#!/usr/bin/env python3
"""Replays the recordings of kube-apiserver against `muster up --roles apiserver,controllers` and compares what does
not hold with the committed list. Standard library only.

  check.py --muster target/release/muster [--family GLOB]... [--update]

Ends with 1 when a check fails that is not listed in apiserver/not-held.txt; tells which listed ones hold by now.
`--update` writes the list anew.
"""
import argparse, json, os, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
LIST = os.path.join(HERE, "apiserver", "not-held.txt")
HEAD = "# Checks of the recordings that do not hold yet, one a line: FAMILY STEP. A run fails when any other fails.\n"
sys.path.insert(0, os.path.join(HERE, ".."))
from server import Server  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--muster", required=True)
    parser.add_argument("--family", action="append", default=[])
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    if options.update and options.family:
        parser.error("--update needs all families")

    with Server(options.muster, ["--roles", "apiserver,controllers"]) as server:
        command = [sys.executable, os.path.join(HERE, "replay.py"), "--kubeconfig", server.kubeconfig, "--json"]
        for family in options.family:
            command += ["--family", family]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    if answer.returncode not in (0, 1):
        sys.exit(f"replay.py ended with {answer.returncode}")
    result = json.loads(answer.stdout)

    failing = {}
    for family in result["families"]:
        for failure in family["failures"]:
            key = f"{family['family']} {failure['step']}"
            failing.setdefault(key, f"{failure.get('request', '')}: {failure['diff']}")
    replayed = {family["family"] for family in result["families"]}

    if options.update:
        with open(LIST, "w") as f:
            f.write(HEAD + "".join(key + "\n" for key in sorted(failing)))
    listed = set()
    if os.path.exists(LIST):
        with open(LIST) as f:
            listed = {line.strip() for line in f if line.strip() and not line.startswith("#")}
    listed = {key for key in listed if key.split()[0] in replayed}

    unexpected = sorted(set(failing) - listed)
    for key in unexpected:
        print(f"FAILED {key}\n    {failing[key]}")
    for key in sorted(listed - set(failing)):
        print(f"holds now, take it off the list: {key}")
    held, total = result["passed"], result["total"]
    print(f"golden apiserver: {held} of {total} checks hold ({100 * held / max(total, 1):.1f} %), "
          f"{len(listed)} listed as not yet held, {len(unexpected)} failing beyond the list")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
