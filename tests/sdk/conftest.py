import os, shutil, sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
from server import Server  # noqa: E402


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One `muster up` for all tests; pods see the environment that the SDK is installed in."""
    root = os.path.join(HERE, "..", "..")
    muster = os.environ.get("MUSTER", os.path.join(root, "target", "release", "muster"))
    environment = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
    images = tmp_path_factory.mktemp("images") / "images.toml"
    # Upstream's default image of create_job(train_func=...), and any other of kubeflow's or pytorch's.
    images.write_text("".join(
        f'[[image]]\nmatch = "{pattern}"\nvenv = "{environment}"\n\n'
        for pattern in ("docker.io/pytorch/*", "docker.io/kubeflow/*", "pytorch/*", "kubeflow/*")))
    with Server(muster, ["--images", str(images)]) as server:
        yield server
        log = open(server.log).read()
    assert "panicked" not in log, log


@pytest.fixture
def client(server):
    from kubeflow.training import TrainingClient
    return TrainingClient(config_file=server.kubeconfig, namespace="default")
