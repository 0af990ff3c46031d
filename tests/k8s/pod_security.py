"""Kubernetes' pod security standard "restricted" (baseline included), as the admission of a namespace applies it."""

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SECCOMP = {"RuntimeDefault", "Localhost"}
_SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def problems(pod: Object) -> list[str]:
    """What of a pod's spec the standard refuses; nothing: the pod is admitted."""
    return [*_of_pod(pod), *(line for container in containers(pod) for line in _of_container(container, pod))]


def containers(pod: Object) -> list[Object]:
    """Every container of a pod, also those that run before the others."""
    return [
        container for kind in ("initContainers", "containers", "ephemeralContainers") for container in pod.get(kind, [])
    ]


def pod_specs(value: Any) -> Iterator[Object]:
    """Every pod's spec inside an object, however deep its template lies."""
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield value
        for inner in value.values():
            yield from pod_specs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_specs(inner)


def _of_pod(pod: Object) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes", []):
        for kind in set(volume) - {"name"} - _VOLUMES:
            yield f"volume {volume['name']}: {kind}"
    context = pod.get("securityContext", {})
    if context.get("sysctls"):
        yield "sysctls"
    if context.get("runAsUser") == 0:
        yield "pod: root"
    yield from _of_either("pod", context)


def _of_container(container: Object, pod: Object) -> Iterator[str]:
    name, own = container["name"], container.get("securityContext", {})
    context = {**pod.get("securityContext", {}), **own}
    capabilities = own.get("capabilities", {})
    if own.get("privileged"):
        yield f"{name}: privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation"
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name}: capabilities"
    if context.get("runAsNonRoot") is not True:
        yield f"{name}: runAsNonRoot"
    if own.get("runAsUser") == 0:
        yield f"{name}: root"
    if context.get("seccompProfile", {}).get("type") not in _SECCOMP:
        yield f"{name}: seccompProfile"
    if own.get("procMount", "Default") != "Default":
        yield f"{name}: procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name}: hostPort"
    yield from _of_either(name, own)


def _of_either(name: str, context: Object) -> Iterator[str]:
    """What is refused on a pod and on a container alike."""
    linux = context.get("seLinuxOptions", {})
    if linux.get("type") not in _SELINUX or linux.get("user") or linux.get("role"):
        yield f"{name}: seLinuxOptions"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in _SECCOMP:
        yield f"{name}: appArmorProfile"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{name}: hostProcess"
