"""KubeRay's RayJob (ray.io/v1) as far as it is used here: the schema with its defaults, and the controllers' own rules.

Written from the fields and rules of KubeRay 1.7 and of Kueue's webhook, not a copy of their CRD. A field that is not
here is refused, so a new one has to be looked up first. Pod templates are held against Kubernetes' own schema.
"""

import copy
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Values = dict[str, Any]
KUBERNETES = "1.34"
NAME_LENGTH = 47  # MaxRayClusterNameLength 53, less 6 for the cluster's own suffix
MOST_GROUPS = 7  # a Kueue workload has 8 pod sets, and the head is one
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_QUEUE = "kueue.x-k8s.io/queue-name"


def _object(required: tuple[str, ...] = (), **properties: Values) -> Values:
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def _integer(**more: int) -> Values:
    return {"type": "integer", **more}


_STRING: Values = {"type": "string"}
_BOOLEAN: Values = {"type": "boolean"}
_STRINGS: Values = {"type": "object", "additionalProperties": _STRING}
_TEMPLATE: Values = {"type": "object", "required": ["spec"]}  # its inside: Kubernetes' own schema
_OWNER = _object(
    ("apiVersion", "kind", "name", "uid"),
    apiVersion=_STRING, kind=_STRING, name=_STRING, uid=_STRING, controller=_BOOLEAN, blockOwnerDeletion=_BOOLEAN,
)  # fmt: skip
_METADATA = _object(
    ("name",),
    name=_STRING, namespace=_STRING, labels=_STRINGS, annotations=_STRINGS,
    ownerReferences={"type": "array", "items": _OWNER},
)  # fmt: skip
_HEAD = _object(("rayStartParams", "template"), rayStartParams=_STRINGS, template=_TEMPLATE, serviceType=_STRING)
_WORKERS = _object(
    ("groupName", "rayStartParams", "template", "minReplicas", "maxReplicas"),
    groupName=_STRING, replicas=_integer(default=0), minReplicas=_integer(default=0),
    maxReplicas=_integer(default=2147483647), numOfHosts=_integer(default=1), rayStartParams=_STRINGS,
    template=_TEMPLATE,
)  # fmt: skip
CLUSTER_SPEC = _object(
    ("headGroupSpec",),
    rayVersion=_STRING, authOptions=_object((), mode={"enum": ["disabled", "token"]}), headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS}, enableInTreeAutoscaling=_BOOLEAN,
)  # fmt: skip
_JOB_SPEC = _object(
    (),
    entrypoint=_STRING, submissionMode={"type": "string", "default": "K8sJobMode"}, runtimeEnvYAML=_STRING,
    backoffLimit=_integer(default=0), activeDeadlineSeconds=_integer(), preRunningDeadlineSeconds=_integer(minimum=1),
    ttlSecondsAfterFinished=_integer(default=0), shutdownAfterJobFinishes=_BOOLEAN, suspend=_BOOLEAN, metadata=_STRINGS,
    rayClusterSpec=CLUSTER_SPEC,
)  # fmt: skip
RAYJOB = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=_METADATA, spec=_JOB_SPEC,
)  # fmt: skip
RAYCLUSTER = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"}, kind={"const": "RayCluster"}, metadata=_METADATA, spec=CLUSTER_SPEC,
)  # fmt: skip


def problems(manifest: Values) -> list[str]:
    """What the API server, KubeRay or Kueue would refuse of a RayJob; nothing: it is accepted by all three."""
    refused = list(schema_problems(manifest))
    return refused or [*_of_metadata(manifest), *_of_job(with_defaults(manifest)), *_of_kueue(manifest)]


def schema_problems(manifest: Values, schema: Values = RAYJOB) -> Iterator[str]:
    """What the API server refuses, unknown fields included (it prunes them, which is worse: nobody is told)."""
    for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest):
        yield f"{'.'.join(map(str, error.absolute_path)) or 'RayJob'}: {error.message[:200]}"
    for where, template in templates(manifest):
        if refused := _pod_problem(json.dumps(template, sort_keys=True)):
            yield f"{where}: {refused}"


@functools.cache  # a quarter of a second each
def _pod_problem(template: str) -> str:
    pod = {"apiVersion": "v1", "kind": "Pod", **json.loads(template)}
    pod.setdefault("metadata", {})["name"] = "pod"
    try:
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)[:300]
    return ""


def templates(manifest: Values) -> Iterator[tuple[str, Values]]:
    """(where, template) of every pod."""
    cluster = manifest.get("spec", {}).get("rayClusterSpec") or manifest.get("spec", {})
    if template := cluster.get("headGroupSpec", {}).get("template"):
        yield "head", template
    for group in cluster.get("workerGroupSpecs", []):
        if "template" in group:
            yield str(group.get("groupName")), group["template"]


def with_defaults(manifest: Values, schema: Values = RAYJOB) -> Values:
    """What the API server stores: the manifest with the schema's defaults."""
    return _filled(copy.deepcopy(manifest), schema)


def _filled(value: Any, schema: Values) -> Any:
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = inner["default"]
            if name in value:
                value[name] = _filled(value[name], inner)
    if isinstance(value, list):
        return [_filled(item, schema.get("items", {})) for item in value]
    return value


def _of_metadata(manifest: Values) -> Iterator[str]:
    metadata = manifest["metadata"]
    name = metadata["name"]
    if len(name) > NAME_LENGTH:
        yield f"name {name!r}: more than {NAME_LENGTH} characters"
    if not _DNS_1035.fullmatch(name):
        yield f"name {name!r}: not a DNS-1035 label"
    for labels in (
        metadata.get("labels", {}),
        *(t.get("metadata", {}).get("labels", {}) for _, t in templates(manifest)),
    ):
        for key, value in labels.items():
            if not _LABEL_KEY.fullmatch(key):
                yield f"label {key!r}: not a qualified name"
            if not _LABEL_VALUE.fullmatch(value):
                yield f"label {key}: {value!r} is no label's value"


def _of_job(job: Values) -> Iterator[str]:
    """ValidateRayJobSpec."""
    spec = job["spec"]
    if spec["submissionMode"] not in _MODES:  # the CRD has no enum: a typo would wait for ever
        yield f"submissionMode {spec['submissionMode']!r}: unknown"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if spec["ttlSecondsAfterFinished"] and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if "rayClusterSpec" not in spec:
        yield "rayClusterSpec is missing"
        return
    if spec["submissionMode"] == "InteractiveMode" and spec["backoffLimit"]:
        yield "backoffLimit does not go with InteractiveMode"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} must be positive"
    for name in ("ttlSecondsAfterFinished", "backoffLimit"):
        if spec[name] < 0:
            yield f"{name} must not be negative"
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML is not YAML"
    yield from _of_cluster(spec["rayClusterSpec"])


def _of_cluster(cluster: Values) -> Iterator[str]:
    """ValidateRayClusterSpec, and what a pod of ours must have for Ray to start."""
    head = cluster["headGroupSpec"]
    for where, template in templates({"spec": cluster}):
        if not template["spec"].get("containers"):
            yield f"{where}: no container"
    for where, group in [("head", head), *((g["groupName"], g) for g in cluster.get("workerGroupSpecs", []))]:
        if "labels" in group["rayStartParams"]:
            yield f"{where}: rayStartParams.labels is not supported"
    for group in cluster.get("workerGroupSpecs", []):
        if not 0 <= group["minReplicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: minReplicas {group['minReplicas']} > maxReplicas {group['maxReplicas']}"
    names = {variable["name"] for variable in head["template"]["spec"]["containers"][0].get("env", [])}
    for forbidden in ("RAY_REDIS_ADDRESS", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"):
        if forbidden in names:
            yield f"head: {forbidden} is not to be set"
    if cluster.get("authOptions", {}).get("mode") == "token":
        found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", cluster.get("rayVersion", ""))
        if not found or (int(found[1]), int(found[2])) < (2, 52):
            yield f"authOptions.mode token needs rayVersion >= 2.52.0, not {cluster.get('rayVersion')!r}"
    ports = {port["name"] for port in head["template"]["spec"]["containers"][0].get("ports", [])}
    if ports and "dashboard" not in ports:  # with ports of one's own, the Service has these only
        yield "head: no port named dashboard, so that nobody can submit"


def _of_kueue(manifest: Values) -> Iterator[str]:
    """The webhook's rules for a RayJob with a queue."""
    spec, queue = manifest["spec"], manifest["metadata"].get("labels", {}).get(_QUEUE)
    if queue is None:
        return
    cluster = spec.get("rayClusterSpec", {})
    groups = cluster.get("workerGroupSpecs", [])
    if not spec.get("suspend"):
        yield "a queued RayJob begins suspended, else it runs before it is admitted where the webhook is late"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "a queued RayJob must delete its cluster, else its quota is never given back"
    if cluster.get("enableInTreeAutoscaling"):
        yield "a queued RayJob must not autoscale"
    if len(groups) > MOST_GROUPS:
        yield f"more than {MOST_GROUPS} groups of workers"
    if any(group["groupName"] == "head" for group in groups):
        yield "a group of workers must not be named head"
