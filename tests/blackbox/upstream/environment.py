"""What the stand-ins for upstream's programs share: an environment that is wrong ends the program, with the reason."""

import os
import sys


def check(true, problem):
    if not true:
        sys.exit(f"wrong environment: {problem}")


def variable(name):
    check(name in os.environ, f"{name} is not set")
    return os.environ[name]
