"""What a task's pod asks for on a cluster, as constants: KFP 2.17 compiles parameters here to what nobody declares.

Secrets are named, never held: the pod gets their keys as environment variables, each optional, so that a key that a
secret lacks does not keep the pod from starting; what then is missing, the stage says in one line.
"""

import re
from typing import Any

from components.rayjob import RUN, STAGE, label_value, quantity_bytes
from components.runtime import needs_ray
from data.place import Place, Pod, RayJob
from data.stage import StageSpec
from pipelines.cluster.spec import Cluster

FIELDS = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "POD_NAMESPACE": "metadata.namespace"}
_GPU_KINDS = ("train", "embed")
_KFP_MEMORY = re.compile(r"[0-9]+(Ki|Mi|Gi|Ti|M|G|T)?")
_RETRY_SECONDS = 30  # first wait before a new pod, doubled each time: a drained node's neighbours need it
# Argo counts this from the first pod's start and ends whatever runs then; KFP's default would end a training after 1 h
_RETRY_WINDOW_SECONDS = 365 * 24 * 3600


def pod_of(kind: str, cluster: Cluster, place: Place) -> Pod:
    """What the pod of a stage's task asks for: the launcher's share where a RayJob does the work."""
    if place.rayjob and needs_ray(kind, place):
        return cluster.launcher
    return cluster.tasks.get(kind, cluster.task)


def gpus_of(kind: str, place: Place) -> int:
    """GPUs of a task's own pod: where no RayJob does the work, a Ray in the pod has them all."""
    return place.train_workers * place.gpus_per_worker if place.rayjob is None and kind in _GPU_KINDS else 0


def dress(task: Any, stage: str, spec: StageSpec, cluster: Cluster, place: Place, run: str) -> None:
    """Give a task all that its pod asks for."""
    from kfp import kubernetes

    pod = pod_of(spec.kind, cluster, place)
    _resources(task, pod, gpus_of(spec.kind, place))
    for secret, keys in cluster.environment_keys().items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    for claim, path in cluster.volumes.items():
        kubernetes.mount_pvc(task, claim, path)
    if pod.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=pod.shm)  # noqa: S108
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())
    for key, value in {RUN: run, STAGE: stage}.items():
        kubernetes.add_pod_label(task, key, label_value(value))
    for name, field in FIELDS.items():  # the launcher's RayJob is owned by its task's pod
        kubernetes.use_field_path_as_env(task, name, field)
    _lifetime(task, cluster)


def _resources(task: Any, pod: Pod, gpus: int) -> None:
    """Requests equal to limits: a pod that was promised less than it takes is the first to be evicted."""
    cpus, memory = f"{pod.cpus:g}", kfp_memory(pod.memory)
    task.set_cpu_request(cpus).set_cpu_limit(cpus).set_memory_request(memory).set_memory_limit(memory)
    if gpus:
        task.set_accelerator_type(RayJob.model_fields["gpu_resource"].default).set_accelerator_limit(gpus)


def _lifetime(task: Any, cluster: Cluster) -> None:
    """How often and how long: a new pod finds the finished shards and the restart state of the one before."""
    from kfp import kubernetes

    if cluster.pull_policy:
        kubernetes.set_image_pull_policy(task, cluster.pull_policy)
    if cluster.task_seconds:
        kubernetes.set_timeout(task, cluster.task_seconds)
    if cluster.task_retries:
        task.set_retry(
            cluster.task_retries, backoff_duration=f"{_RETRY_SECONDS}s", backoff_factor=2.0,
            backoff_max_duration=f"{_RETRY_WINDOW_SECONDS}s",
        )  # fmt: skip


def kfp_memory(quantity: str) -> str:
    """A quantity in the words that KFP takes: whole numbers, no `k`."""
    if _KFP_MEMORY.fullmatch(quantity):
        return quantity
    return str(round(quantity_bytes(quantity)))
