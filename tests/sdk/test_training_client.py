"""The unmodified TrainingClient of kubeflow-training against `muster up`."""
import time

import pytest
from kubeflow.training import (
    KubeflowOrgV1PyTorchJob, KubeflowOrgV1PyTorchJobSpec, KubeflowOrgV1ReplicaSpec, KubeflowOrgV1RunPolicy, constants)
from kubernetes import client as k8s

KIND = "PyTorchJob"


def pytorch_job(name, script, workers=1):
    def replica(count):
        container = k8s.V1Container(name="pytorch", image="host", command=["sh", "-c", script])
        return KubeflowOrgV1ReplicaSpec(
            replicas=count, restart_policy="Never",
            template=k8s.V1PodTemplateSpec(spec=k8s.V1PodSpec(containers=[container])))
    return KubeflowOrgV1PyTorchJob(
        api_version=constants.API_VERSION, kind=KIND, metadata=k8s.V1ObjectMeta(name=name, namespace="default"),
        spec=KubeflowOrgV1PyTorchJobSpec(
            run_policy=KubeflowOrgV1RunPolicy(clean_pod_policy="None"),
            pytorch_replica_specs={"Master": replica(1), "Worker": replica(workers)}))


def wait(client, name, conditions, **more):
    """The SDK polls; it is asked to do so often."""
    return client.wait_for_job_conditions(
        name=name, job_kind=KIND, expected_conditions=conditions, wait_timeout=120, polling_interval=1, **more)


def test_a_job_from_creation_to_deletion(client):
    client.create_job(pytorch_job("sdk", "echo rank $RANK of $WORLD_SIZE"))
    wait(client, "sdk", {constants.JOB_CONDITION_SUCCEEDED})
    assert client.is_job_succeeded("sdk", job_kind=KIND)
    assert sorted(client.get_job_pod_names("sdk")) == ["sdk-master-0", "sdk-worker-0"]
    assert client.get_job_pod_names("sdk", is_master=True) == ["sdk-master-0"]
    logs, events = client.get_job_logs("sdk", job_kind=KIND, is_master=False)[:2]
    assert "rank 0 of 2" in logs["sdk-master-0"] and "rank 1 of 2" in logs["sdk-worker-0"]
    logs, events = client.get_job_logs("sdk", job_kind=KIND, verbose=True)[:2]
    assert any("SuccessfulCreatePod" in line or "Created pod" in line for lines in events.values() for line in lines)
    assert [job.metadata.name for job in client.list_jobs(job_kind=KIND)] == ["sdk"]
    client.delete_job("sdk", job_kind=KIND)
    deadline = time.monotonic() + 30
    while client.get_job_pods("sdk"):
        assert time.monotonic() < deadline, "the pods are still there"
        time.sleep(0.2)


def test_a_failing_job_is_told(client):
    client.create_job(pytorch_job("failing", "exit 3", workers=1))
    with pytest.raises(RuntimeError):
        wait(client, "failing", {constants.JOB_CONDITION_SUCCEEDED})
    assert client.is_job_failed("failing", job_kind=KIND)
    client.delete_job("failing", job_kind=KIND)


def test_a_name_that_is_taken_is_refused(client):
    client.create_job(pytorch_job("taken", "sleep 60"))
    with pytest.raises(RuntimeError):
        client.create_job(pytorch_job("taken", "true"))
    client.delete_job("taken", job_kind=KIND)


def train(parameters):
    """What a user would train; its source travels in the job."""
    import torch
    import torch.distributed as dist
    dist.init_process_group(backend="gloo")
    total = torch.ones(1) * parameters["unit"]
    dist.all_reduce(total)
    print(f"all_reduce of rank {dist.get_rank()}: {total.item():.0f}", flush=True)
    dist.destroy_process_group()


def test_a_function_is_trained(client):
    client.create_job(name="function", train_func=train, parameters={"unit": 5}, num_workers=2,
                      num_procs_per_worker=1)
    wait(client, "function", {constants.JOB_CONDITION_SUCCEEDED})
    logs = client.get_job_logs("function", job_kind=KIND)[0]
    assert any("all_reduce of rank 0: 10" in text for text in logs.values()), logs
    client.delete_job("function", job_kind=KIND)
