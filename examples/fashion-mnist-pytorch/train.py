"""An ordinary PyTorch DDP script: nothing in it knows of Muster.

The rank, the number of ranks and where they meet come from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as
torchrun and Kubeflow give them. Without them it trains alone.
"""

import argparse
import gzip
import hashlib
import os
import pathlib
import struct
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")


def read_idx(path):
    with gzip.open(path, "rb") as file:
        magic = file.read(4)
        shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
        return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).reshape(shape)


def load(folder, prefix, samples=None):
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")[:samples].unsqueeze(1).float() / 255
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")[:samples].long()
    return TensorDataset((images - 0.2860) / 0.3530, labels)


def model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )


@torch.no_grad()
def accuracy(network, data):
    network.eval()
    right = sum((network(x).argmax(1) == y).sum().item() for x, y in DataLoader(data, batch_size=250))
    network.train()
    return right / len(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default=CACHE / "muster" / "fashion-mnist")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--samples", type=int, help="use only so many samples of the training set")
    options = parser.parse_args()

    torch.manual_seed(1)
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if world > 1 else 0

    train, test = load(options.data, "train", options.samples), load(options.data, "t10k")
    network = model()
    if world > 1:
        network = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=options.lr, momentum=0.9)
    sampler = DistributedSampler(train, num_replicas=world, rank=rank, seed=1)
    loader = DataLoader(train, batch_size=options.batch_size, sampler=sampler, drop_last=True)

    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        started, samples = time.monotonic(), 0
        for step, (images, labels) in enumerate(loader):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            samples += len(labels) * world
            if rank == 0 and step % 100 == 0:
                print(f"epoch {epoch + 1}/{options.epochs} step {step} loss {loss.item():.4f}", flush=True)
        if rank == 0:
            speed = samples / (time.monotonic() - started)
            print(f"epoch {epoch + 1}/{options.epochs} {speed:.0f} samples/s", flush=True)

    inner = network.module if world > 1 else network
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in inner.parameters())).hexdigest()
    print(f"rank {rank} of {world}: parameters sha256:{digest}", flush=True)
    if rank == 0:
        print(f"accuracy={accuracy(inner, test):.4f}", flush=True)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
