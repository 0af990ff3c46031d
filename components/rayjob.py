"""The RayJob of a stage as plain values: a pure function of the stage and its place, so that a review can read it.

The job is submitted in KubeRay's HTTPMode. K8sJobMode starts a third pod only to call `ray job submit` over the
network, which needs an image pull and quota of its own and is what fails when the head is late. SidecarMode puts a
container into the head's pod that has no securityContext, which a namespace under the pod security standard
`restricted` refuses. In HTTPMode every container is ours, and the operator, which must reach the dashboard in any mode,
asks again until it does. What it lacks, a bound on how often a lost head is started anew, the launcher keeps.
"""

import math
import re
import shlex
from importlib.metadata import version
from typing import Any, NamedTuple

from data.place import Place, Pod, RayJob
from data.spec import digest

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
RUN, STAGE, JOB, TASK = "clipworks/run", "clipworks/stage", "clipworks/job", "clipworks/task"
QUEUE = "kueue.x-k8s.io/queue-name"
NAME_LENGTH = 47  # KubeRay adds 6 characters for the cluster, and a Service's suffix must still fit into 63
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES |= {f"{prefix}i": 1 << 10 * power for power, prefix in enumerate("KMGT", start=1)}
_OBJECT_STORE_BYTES = 500_000_000  # our tasks exchange numbers of shards and short records, never pairs
_KEEP_SECONDS = 300  # a finished cluster whose launcher is gone
_GROUP_ID = 1000  # what a volume's files belong to, so that a user without root may write there
_SHM = "/dev/shm"  # noqa: S108


class Workers(NamedTuple):
    """Worker pods of a stage: how many, and what each has."""

    pods: int
    cpus: int
    gpus: int


class Owner(NamedTuple):
    """The pod that the RayJob goes with when it is removed."""

    name: str
    uid: str


class Job(NamedTuple):
    """What a RayJob is made of besides the place."""

    name: str
    kind: str
    stage: str
    run: str
    task_uri: str
    likeness: str
    owner: Owner | None = None


def job_name(stage: str, fingerprint: str, attempt: int) -> str:
    """`<stage>-<short fingerprint>-<attempt>`: a DNS label that starts with a letter, short enough for KubeRay."""
    tail = f"-{fingerprint[:8]}-{attempt}"
    plain = re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"s-{plain}".rstrip("-")
    return plain[: NAME_LENGTH - len(tail)].rstrip("-") + tail


def failure_uri(job: Job) -> str:
    """Where the process inside leaves why it failed: beside its task, under the RayJob's name."""
    return f"{job.task_uri.rpartition('/')[0]}/{job.name}.failure.json"


def label_value(text: str) -> str:
    """A name as the value of a label, which has at most 63 characters and a letter or digit at either end."""
    if _LABEL.fullmatch(text):
        return text
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", text)[:50].strip("._-")
    return f"{plain}-{digest(text)[:8]}".lstrip("-")


def workers_of(kind: str, place: Place) -> Workers:
    """The worker pods that a stage of this kind needs.

    Ranks of training, and workers with GPUs, come `workers_per_pod` to a pod. Data stages take a CPU a worker, in pods
    of the same size, or of `data.cpus` where the place has pods for them.
    """
    rayjob = _rayjob(place)
    if kind == "train" or (kind == "embed" and place.gpus_per_worker):
        # train_workers says how many GPUs the place has; more data workers than that take turns on them
        ranks = place.train_workers if kind == "train" else min(place.data_workers, place.train_workers)
        per_pod = min(rayjob.workers_per_pod, ranks)
        pods = math.ceil(ranks / per_pod)
        return Workers(pods, per_pod * place.cpus_per_worker, per_pod * place.gpus_per_worker)
    most = int(rayjob.data.cpus) if rayjob.data else rayjob.workers_per_pod * place.cpus_per_worker
    cpus = min(place.data_workers, max(1, most))
    return Workers(math.ceil(place.data_workers / cpus), cpus, 0)


def manifest(job: Job, place: Place) -> dict[str, Any]:
    """The RayJob as Kubernetes takes it."""
    rayjob = _rayjob(place)
    metadata: dict[str, Any] = {
        "name": job.name,
        "namespace": rayjob.namespace,
        "labels": {**_labels(job), **({QUEUE: rayjob.queue} if rayjob.queue else {})},
        "annotations": {RUN: job.run, STAGE: job.stage, TASK: job.likeness},
    }
    if job.owner:
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Pod", "name": job.owner.name, "uid": job.owner.uid}
        ]
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(["python", "-P", "-m", "components.stage", job.task_uri, failure_uri(job)]),
        "submissionMode": "HTTPMode",
        "backoffLimit": rayjob.restarts,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEEP_SECONDS,
        "preRunningDeadlineSeconds": math.ceil(rayjob.start_seconds) + 60,  # the launcher speaks first
        "rayClusterSpec": _cluster(job, place),
    }
    if rayjob.deadline_seconds:
        spec["activeDeadlineSeconds"] = math.ceil(rayjob.deadline_seconds)
    if rayjob.queue:
        spec["suspend"] = True  # until Kueue admits it
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _rayjob(place: Place) -> RayJob:
    assert place.rayjob, "a RayJob is made only where the place has one"
    return place.rayjob


def _labels(job: Job) -> dict[str, str]:
    """What finds the job and its pods: by run, by stage, by name."""
    labels = {"app.kubernetes.io/part-of": "clipworks", JOB: job.name, STAGE: label_value(job.stage)}
    return labels | ({RUN: label_value(job.run)} if job.run else {})


def _cluster(job: Job, place: Place) -> dict[str, Any]:
    """A head that only leads, and one group of equal workers."""
    rayjob, workers = _rayjob(place), workers_of(job.kind, place)
    pod = rayjob.data if rayjob.data and job.kind != "train" and not workers.gpus else rayjob.worker
    head_cpus, worker_cpus = f"{rayjob.head.cpus:g}", str(workers.cpus)
    ports = [{"containerPort": port, "name": name} for port, name in ((6379, "gcs-server"), (8265, "dashboard"))]
    head = _template("ray-head", job, place, rayjob.head, head_cpus, 0)
    head["spec"]["containers"][0]["ports"] = ports
    return {
        "rayVersion": version("ray"),
        "authOptions": {
            "mode": "token"
        },  # KubeRay makes a token a cluster: without it any pod may run code on the head
        "headGroupSpec": {"rayStartParams": _start_params(0, 0, rayjob.head), "template": head},
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": workers.pods,
                "minReplicas": workers.pods,
                "maxReplicas": workers.pods,
                "rayStartParams": _start_params(workers.cpus, workers.gpus, pod),
                "template": _template("ray-worker", job, place, pod, worker_cpus, workers.gpus),
            }
        ],
    }


def _start_params(cpus: int, gpus: int, pod: Pod) -> dict[str, str]:
    """Arguments of `ray start`, which are strings all; the object store must fit into /dev/shm."""
    room = quantity_bytes(pod.shm) * 0.8 if pod.shm else quantity_bytes(pod.memory) * 0.3
    store = str(int(min(_OBJECT_STORE_BYTES, room)))
    return {"num-cpus": str(cpus), "num-gpus": str(gpus), "object-store-memory": store}


def _template(container: str, job: Job, place: Place, pod: Pod, cpus: str, gpus: int) -> dict[str, Any]:
    rayjob = _rayjob(place)
    mounts, volumes = _volumes(rayjob, pod)
    amounts = {"cpu": cpus, "memory": pod.memory}
    amounts |= {"ephemeral-storage": pod.disk} if pod.disk else {}
    amounts |= {rayjob.gpu_resource: str(gpus)} if gpus else {}
    spec: dict[str, Any] = {
        "serviceAccountName": rayjob.service_account,
        "automountServiceAccountToken": False,  # nothing in these pods speaks to Kubernetes
        "enableServiceLinks": False,
        "securityContext": _pod_security(bool(rayjob.volumes)),
        "containers": [
            {
                "name": container,
                "image": place.image,
                "env": _environment(),
                "envFrom": [{"secretRef": {"name": name}} for name in rayjob.secrets],
                "resources": {"limits": amounts, "requests": dict(amounts)},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [toleration.model_dump(exclude_none=True) for toleration in pod.tolerations]
    # a profile of Kubeflow gives every pod an Istio proxy, which Ray's many ports do not survive
    no_proxy = {"sidecar.istio.io/inject": "false"}
    return {"metadata": {"labels": {**_labels(job), **no_proxy}, "annotations": no_proxy}, "spec": spec}


def _pod_security(has_volumes: bool) -> dict[str, Any]:
    """What the pod security standard `restricted` asks of a pod; the image's own user is a number, not root."""
    security: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if has_volumes:
        security |= {"fsGroup": _GROUP_ID, "fsGroupChangePolicy": "OnRootMismatch"}
    return security


def _environment() -> list[dict[str, Any]]:
    """RAY_AUTH_MODE is written down although KubeRay sets it too: Ray would otherwise choose by what it finds."""
    plain = {
        "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    own = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    return [*({"name": name, "value": value} for name, value in plain.items()), own]


def _volumes(rayjob: RayJob, pod: Pod) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Mounts and volumes: /dev/shm under the name that KubeRay would give it, and the persistent volume claims."""
    mounts: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    if pod.shm:
        mounts.append({"name": "shared-mem", "mountPath": _SHM})
        volumes.append({"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shm}})
    for number, (claim, path) in enumerate(rayjob.volumes.items()):
        mounts.append({"name": f"claim-{number}", "mountPath": path})
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    return mounts, volumes


def quantity_bytes(quantity: str) -> float:
    """Bytes of a Kubernetes quantity such as `8Gi`."""
    number = quantity.rstrip("KMGTik")
    return float(number) * _BYTES[quantity[len(number) :]]
