"""Stands for the program of upstream's MXNet image: a scheduler, servers and workers, as ps-lite makes them of one
program by DMLC_ROLE. All report to the scheduler; the job is done when it has heard of everyone."""

import json
import os
import socket
import sys
import time

from environment import check, variable

role = variable("DMLC_ROLE")
scheduler = variable("DMLC_PS_ROOT_URI"), int(variable("DMLC_PS_ROOT_PORT"))
sizes = {"scheduler": 1, "server": int(variable("DMLC_NUM_SERVER")), "worker": int(variable("DMLC_NUM_WORKER"))}
check(variable("DMLC_USE_KUBERNETES") == "1", "DMLC_USE_KUBERNETES")
config = json.loads(variable("MX_CONFIG"))
check(sorted(config) == ["cluster", "labels", "task"], f"MX_CONFIG has the keys {sorted(config)}")
cluster, index = config["cluster"], config["task"]["index"]
check({role: len(members) for role, members in cluster.items()} == sizes, f"a cluster of {cluster}, sizes {sizes}")
check((cluster["scheduler"][0]["url"], cluster["scheduler"][0]["port"]) == scheduler, "the scheduler's address")
check(config["task"]["type"] == role and 0 <= index < sizes[role], f"the task {config['task']} of role {role}")
check(config["labels"] == dict.fromkeys(cluster, ""), f"labels {config['labels']}")
check(os.environ.get("DMLC_WORKER_ID") == (str(index) if role == "worker" else None), "DMLC_WORKER_ID")
host = variable("HOSTNAME")
check(host.endswith(f"-{role}-{index}"), f"HOSTNAME={host} of {role} {index}")
devices = [device for device in variable("CUDA_VISIBLE_DEVICES").split(",") if device]

everyone = [(role, index) for role, size in sizes.items() if role != "scheduler" for index in range(size)]
if role == "scheduler":
    with socket.create_server(scheduler) as server:
        calls = [server.accept()[0] for _ in everyone]
        reports = sorted(json.loads(call.makefile().readline()) for call in calls)
        check([(role, index) for role, index, _ in reports] == sorted(everyone), f"called by {reports}")
        for call in calls:
            call.sendall(b"done")
    print("GPUs:", *(f"{role} {index}: {gpus}" for role, index, gpus in reports))
else:
    while True:
        try:
            call = socket.create_connection(scheduler)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    call.sendall(json.dumps([role, index, len(devices)]).encode() + b"\n")
    check(call.recv(4) == b"done", "the scheduler ended early")
print(f"{role} {index} met all, arguments {sys.argv[1:]}")
