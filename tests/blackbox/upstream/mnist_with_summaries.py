"""Stands for the training program of upstream's TensorFlow images: it checks TF_CONFIG, then every replica calls every
other at the address that TF_CONFIG gives."""

import json
import os
import socket
import sys
import time

from environment import check, variable

config = json.loads(variable("TF_CONFIG"))
check(sorted(config) == ["cluster", "environment", "task"], f"TF_CONFIG has the keys {sorted(config)}")
check(config["environment"] == "cloud", f"environment {config['environment']}")
role, index = config["task"]["type"], config["task"]["index"]
replicas = [(role, index) for role, addresses in sorted(config["cluster"].items()) for index in range(len(addresses))]
check((role, index) in replicas, f"the task {role} {index} is not in the cluster")
host = os.environ["HOSTNAME"]
check(host.endswith(f"-{role}-{index}"), f"HOSTNAME={host} of {role} {index}")


def address(replica):
    host, _, port = config["cluster"][replica[0]][replica[1]].rpartition(":")
    return host, int(port)


check(len({address(replica) for replica in replicas}) == len(replicas), "two replicas have one address")
me = replicas.index((role, index))
with socket.create_server(address(replicas[me])) as server:
    calls = []
    for other, replica in enumerate(replicas):
        while other != me:
            try:
                call = socket.create_connection(address(replica))
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        if other != me:
            call.sendall(bytes([me]))
            calls.append(call)
    callers = {server.accept()[0].recv(1)[0] for _ in calls}
    check(callers == set(range(len(replicas))) - {me}, f"called by {callers}")
print(f"{role} {index} of {len(replicas)} met all, arguments {sys.argv[1:]}")
