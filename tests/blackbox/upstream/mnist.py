"""Stands for the training program of upstream's PyTorch images: it checks its environment, then all ranks meet at the
master's address and tell each other who they are."""

import os
import re
import socket
import sys
import time

from environment import check, variable

def number(name, least, most):
    text = variable(name)
    check(re.fullmatch("[0-9]+", text) and least <= int(text) <= most, f"{name}={text}")
    return int(text)


world = number("WORLD_SIZE", 1, 1000)
rank = number("RANK", 0, world - 1)
address, port = variable("MASTER_ADDR"), number("MASTER_PORT", 1, 65535)
check(variable("PYTHONUNBUFFERED") == "1", "PYTHONUNBUFFERED")
check(variable("PET_MASTER_ADDR") == address, "PET_MASTER_ADDR is not MASTER_ADDR")
check(number("PET_MASTER_PORT", 1, 65535) == port, "PET_MASTER_PORT is not MASTER_PORT")
check(number("PET_NODE_RANK", 0, world - 1) == rank, "PET_NODE_RANK is not RANK")
check(number("PET_NNODES", 1, 1000) == world, "PET_NNODES is not WORLD_SIZE")
host = variable("HOSTNAME")
own = f"-worker-{rank - 1}" if rank else "-master-0"
check(host.endswith(own), f"HOSTNAME={host} of rank {rank}")
for name in "MUSTER_RENDEZVOUS", "MUSTER_JOB_TOKEN":
    check(name not in os.environ, f"{name} is for those that ask for it")

if rank == 0:
    with socket.create_server((address, port)) as server:
        peers = {0: None}
        while len(peers) < world:
            peer = server.accept()[0]
            who = int.from_bytes(peer.recv(4), "big")
            check(who not in peers and 0 < who < world, f"a second rank {who}")
            peers[who] = peer
        total = sum(peers)
        for peer in filter(None, peers.values()):
            peer.sendall(total.to_bytes(4, "big"))
else:
    while True:
        try:
            master = socket.create_connection((address, port))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    master.sendall(rank.to_bytes(4, "big"))
    total = int.from_bytes(master.recv(4), "big")
check(total == world * (world - 1) // 2, f"the ranks add up to {total}")
print(f"rank {rank} of {world} met all, arguments {sys.argv[1:]}")
