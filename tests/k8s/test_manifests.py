"""The overlays as a cluster would take them: schemas, names that exist, pod security, quotas; no cluster needed."""

import copy
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

KUEUE = ("ResourceFlavor", "ClusterQueue", "LocalQueue")
FOREIGN_NAMESPACES = {"kubeflow"}  # of KFP, which is there before


def by_kind(objects, kind):
    return [thing for thing in objects if thing["kind"] == kind]


def names(objects, kind, namespace=None):
    return {
        thing["metadata"]["name"]
        for thing in by_kind(objects, kind)
        if namespace is None or thing["metadata"].get("namespace") == namespace
    }


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed; the other tests render without")
def test_kubectl_renders_the_same(k8s, kustomize, overlay, objects):
    command = ["kubectl", "kustomize", str(k8s / "overlays" / overlay)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sorted(yaml.safe_load_all(printed), key=kustomize.identity) == objects


def test_no_object_twice_and_every_namespace_known(kustomize, objects):
    assert len({kustomize.identity(thing) for thing in objects}) == len(objects)
    used = {thing["metadata"].get("namespace") for thing in objects} - {None}
    assert used == names(objects, "Namespace") | FOREIGN_NAMESPACES


@pytest.mark.parametrize("version", ["1.31", "1.34", kubernetes_validate.latest_version()])
def test_the_api_server_of_each_release_takes_every_object(objects, version):
    for thing in objects:
        if thing["kind"] not in KUEUE:
            kubernetes_validate.validate(thing, version, strict=True)


def test_a_misspelt_field_is_refused(objects):
    (quota,) = by_kind(objects, "ResourceQuota")
    quota["spec"]["hards"] = quota["spec"].pop("hard")
    with pytest.raises(kubernetes_validate.ValidationError, match="hards"):
        kubernetes_validate.validate(quota, "1.34", strict=True)


def test_kueue_takes_its_objects(rendered, kueue_schema):
    queues = [thing for thing in rendered["gpu"] if thing["kind"] in KUEUE]
    assert len(queues) == 4
    assert [problem for thing in queues for problem in kueue_schema.problems(thing)] == []
    assert not [thing for thing in rendered["laptop"] if thing["kind"] in KUEUE]  # no queue is needed there


def twice(queue):
    queue["spec"]["resourceGroups"] *= 2


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("ClusterQueue", lambda queue: queue["spec"].update(cohort="all"), "cohort"),
        ("ClusterQueue", lambda queue: queue.update(apiVersion="kueue.x-k8s.io/v1beta1"), "v1beta2"),
        ("ClusterQueue", lambda queue: queue["spec"]["resourceGroups"][0]["coveredResources"].reverse(), "covered"),
        ("ClusterQueue", twice, "twice in flavors"),
        ("LocalQueue", lambda queue: queue["metadata"].pop("namespace"), "namespace"),
        ("LocalQueue", lambda queue: queue["spec"].pop("clusterQueue"), "clusterQueue"),
    ],
)  # fmt: skip
def test_kueue_refuses(rendered, kueue_schema, kind, change, said):
    (queue,) = copy.deepcopy(by_kind(rendered["gpu"], kind))
    change(queue)
    assert any(said in problem for problem in kueue_schema.problems(queue))


def test_a_queue_finds_its_flavors_and_its_namespace(rendered):
    objects = rendered["gpu"]
    (local,), (queue,) = by_kind(objects, "LocalQueue"), by_kind(objects, "ClusterQueue")
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    used = [flavor["name"] for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]]
    assert set(used) == names(objects, "ResourceFlavor")
    selected = queue["spec"]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert selected == local["metadata"]["namespace"]
    assert selected in names(objects, "Namespace")


def test_every_name_that_is_referred_to_exists(objects):
    for binding in by_kind(objects, "RoleBinding"):
        where = binding["metadata"]["namespace"]
        assert binding["roleRef"]["name"] in names(objects, binding["roleRef"]["kind"], where)
        for subject in binding["subjects"]:
            assert subject["name"] in names(objects, "ServiceAccount", subject["namespace"])
    for deployment in by_kind(objects, "Deployment"):
        where, pod = deployment["metadata"]["namespace"], deployment["spec"]["template"]
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        assert set(claims) <= names(objects, "PersistentVolumeClaim", where)
        assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        mounted = {mount["name"] for container in pod["spec"]["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    for service in by_kind(objects, "Service"):
        where, wanted = service["metadata"]["namespace"], service["spec"]["selector"].items()
        behind = [
            thing["spec"]["template"]
            for thing in by_kind(objects, "Deployment")
            if thing["metadata"]["namespace"] == where
            and wanted <= thing["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(behind) == 1
        ports = {port["name"] for container in behind[0]["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_no_secret_is_here_and_those_that_are_meant_are_named(objects, k8s):
    assert not by_kind(objects, "Secret")
    text = yaml.safe_dump_all(objects)
    assert set(re.findall(r"secretKeyRef:\n\s+key: (\w+)\n\s+name: (\S+)", text)) <= {
        ("AWS_ACCESS_KEY_ID", "clipworks-s3"),
        ("AWS_SECRET_ACCESS_KEY", "clipworks-s3"),
    }
    folders = [k8s / name for name in ("base", "components", "overlays")]
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        assert not re.search(r"stringData|secretGenerator|password|AKIA|://[^/\s]+:[^/\s]+@", path.read_text()), path


def test_our_namespace_admits_only_restricted_pods_and_ours_are(objects, pod_security):
    (namespace,) = by_kind(objects, "Namespace")
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == labels["pod-security.kubernetes.io/warn"] == "restricted"
    for thing in objects:
        for pod in pod_security.pod_specs(thing):
            assert pod_security.problems(pod) == []
            assert pod["automountServiceAccountToken"] is False  # ours that ask the API server anything: none


GOOD_POD = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "shm", "emptyDir": {}}],
    "containers": [
        {"name": "a", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    ],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pod, one: pod.update(hostNetwork=True), ["hostNetwork"]),
        (lambda pod, one: pod["volumes"].append({"name": "d", "hostPath": {"path": "/"}}), ["volume d: hostPath"]),
        (lambda pod, one: pod["securityContext"].pop("runAsNonRoot"), ["a: runAsNonRoot"]),
        (lambda pod, one: pod["securityContext"].update(runAsUser=0), ["pod: root"]),
        (lambda pod, one: pod["securityContext"].pop("seccompProfile"), ["a: seccompProfile"]),
        (lambda pod, one: one["securityContext"].update(runAsNonRoot=False), ["a: runAsNonRoot"]),
        (lambda pod, one: one["securityContext"].update(privileged=True), ["a: privileged"]),
        (lambda pod, one: one["securityContext"].pop("allowPrivilegeEscalation"), ["a: allowPrivilegeEscalation"]),
        (lambda pod, one: one["securityContext"].pop("capabilities"), ["a: capabilities"]),
        (lambda pod, one: one["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), ["a: capabilities"]),
        (lambda pod, one: one["securityContext"]["capabilities"].update(add=["NET_BIND_SERVICE"]), []),
        (lambda pod, one: one.update(ports=[{"containerPort": 1, "hostPort": 1}]), ["a: hostPort"]),
        (
            lambda pod, one: pod.update(initContainers=[{"name": "b"}]),
            ["b: allowPrivilegeEscalation", "b: capabilities"],
        ),
        (lambda pod, one: None, []),
    ],
)  # fmt: skip
def test_what_restricted_refuses(pod_security, change, said):
    pod = copy.deepcopy(GOOD_POD)
    change(pod, pod["containers"][0])
    assert pod_security.problems(pod) == said


def test_quotas_are_ones_that_kubernetes_knows(objects, quantities):
    (quota,) = by_kind(objects, "ResourceQuota")
    for name, value in quota["spec"]["hard"].items():
        assert quantities.number(value) >= 0
        extended = "/" in name and not name.startswith("count/")
        assert not extended or name.startswith("requests."), f"{name}: of extended resources only requests are counted"
    (limits,) = by_kind(objects, "LimitRange")
    defaults = limits["spec"]["limits"][0]
    counted = {name for name in quota["spec"]["hard"] if name.split(".", 1)[-1] in ("cpu", "memory")}
    assert counted == {"requests.cpu", "requests.memory", "limits.memory"}
    assert {f"requests.{name}" for name in defaults["defaultRequest"]} <= counted  # or silent containers are refused
    assert "memory" in defaults["default"]
    assert "cpu" not in defaults["default"]


def test_the_quota_never_stops_what_kueue_lets_in(rendered, quantities):
    (quota,), (queue,) = (by_kind(rendered["gpu"], kind) for kind in ("ResourceQuota", "ClusterQueue"))
    for group in queue["spec"]["resourceGroups"]:
        for position, name in enumerate(group["coveredResources"]):
            sizes = [flavor["resources"][position]["nominalQuota"] for flavor in group["flavors"]]
            fence = quota["spec"]["hard"].get(f"requests.{name}")
            assert fence is None or quantities.number(fence) >= sum(map(quantities.number, sizes)), name


def test_the_bucket_of_the_laptop_fits_its_quota(rendered, quantities, pod_security):
    (quota,), (server,) = (by_kind(rendered["laptop"], kind) for kind in ("ResourceQuota", "Deployment"))
    (pod,) = pod_security.pod_specs(server)
    asked = quantities.requests(pod)
    assert asked["memory"] < quantities.number(quota["spec"]["hard"]["requests.memory"]) / 8
    assert asked["cpu"] < quantities.number(quota["spec"]["hard"]["requests.cpu"]) / 8
