"""Least rights: exactly what the tasks' account and Ray's account may do, computed from the roles and bindings."""

import re
from pathlib import Path

import pytest

COMPONENTS = Path(__file__).resolve().parents[2] / "components"
CALLS = {  # of the kubernetes client -> what they ask for
    "create_namespaced_custom_object": ("ray.io", "rayjobs", "create"),
    "get_namespaced_custom_object": ("ray.io", "rayjobs", "get"),
    "list_namespaced_custom_object": ("ray.io", "rayjobs", "list"),
    "delete_namespaced_custom_object": ("ray.io", "rayjobs", "delete"),
    "read_namespaced_pod": ("", "pods", "get"),
    "list_namespaced_pod": ("", "pods", "list"),
    "read_namespaced_pod_log": ("", "pods/log", "get"),
    "list_namespaced_event": ("", "events", "list"),
}
LAUNCHER = {
    *(("clipworks", "ray.io", "rayjobs", verb, "*") for verb in ("create", "get", "list", "delete")),
    ("clipworks", "", "pods", "get", "*"),
    ("clipworks", "", "pods", "list", "*"),
    ("clipworks", "", "events", "get", "*"),
    ("clipworks", "", "events", "list", "*"),
    ("clipworks", "", "pods/log", "get", "*"),
}
KFP = {
    ("kubeflow", "argoproj.io", "workflowtaskresults", "create", "*"),
    ("kubeflow", "argoproj.io", "workflowtaskresults", "patch", "*"),
    ("kubeflow", "argoproj.io", "workflowtasksets", "list", "*"),
    ("kubeflow", "argoproj.io", "workflowtasksets", "watch", "*"),
    ("kubeflow", "argoproj.io", "workflowtasksets/status", "patch", "*"),
    ("kubeflow", "", "configmaps", "get", "kfp-launcher"),
    ("kubeflow", "", "secrets", "get", "mlpipeline-minio-artifact"),
    ("kubeflow", "", "pods", "get", "*"),
}


def test_the_tasks_account_may_do_exactly_this(objects, rights):
    assert rights.rights_of(objects, "kubeflow", "clipworks") == LAUNCHER | KFP


def test_every_call_of_the_launcher_is_allowed(objects, rights):
    """Read from its source, so that a new call cannot come without its right."""
    text = "\n".join(path.read_text() for path in COMPONENTS.glob("*.py"))
    calls = set(re.findall(r"\b(?:create|read|get|list|watch|patch|replace|delete)_namespaced_\w+", text))
    assert calls, "the launcher calls Kubernetes by other names now; change this test with it"
    granted = {right[1:4] for right in rights.rights_of(objects, "kubeflow", "clipworks") if right[0] == "clipworks"}
    assert {CALLS[call] for call in calls} <= granted


def test_of_secrets_it_reads_one_by_name_which_is_kfps_own(objects, rights):
    secrets = [right for right in rights.rights_of(objects, "kubeflow", "clipworks") if "secret" in right.resource]
    assert [(right.namespace, right.verb, right.name) for right in secrets] == [
        ("kubeflow", "get", "mlpipeline-minio-artifact")
    ]


def test_no_wildcard_and_nothing_that_leads_further(objects, rights):
    for right in rights.rights_of(objects, "kubeflow", "clipworks"):
        assert "*" not in (right.namespace, right.group, right.resource, right.verb)
        assert right.resource not in {"pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token"}
        assert right.verb not in {"escalate", "bind", "impersonate", "deletecollection"}
        assert right.resource != "pods" or right.verb in {"get", "list"}  # who makes a pod reads every secret with it
        assert right.group != "rbac.authorization.k8s.io"


def test_rays_account_has_no_right_and_no_token(objects, rights):
    assert rights.rights_of(objects, "clipworks", "clipworks-ray") == set()
    (account,) = [thing for thing in objects if thing["metadata"]["name"] == "clipworks-ray"]
    assert account["automountServiceAccountToken"] is False


def test_nothing_is_granted_to_the_whole_cluster(objects):
    assert not [thing["kind"] for thing in objects if thing["kind"].startswith("ClusterRole")]


@pytest.mark.parametrize("subject", ["Group", "ServiceAccount"])
def test_a_broader_binding_is_seen(objects, rights, subject):
    role = {
        "kind": "ClusterRole",
        "metadata": {"name": "view"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}],
    }
    bound = {"kind": subject, "name": "clipworks-ray", "namespace": "clipworks"}
    if subject == "Group":
        bound = {"kind": subject, "name": "system:serviceaccounts:clipworks"}
    binding = {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "view"},
        "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [bound],
    }
    found = rights.rights_of([*objects, role, binding], "clipworks", "clipworks-ray")
    assert found == {("*", "", "secrets", "list", "*")}


def test_a_binding_in_another_namespace_grants_nothing_here(objects, rights):
    for thing in objects:
        if thing["kind"] == "RoleBinding":
            thing["subjects"][0]["namespace"] = "default"
    assert rights.rights_of(objects, "kubeflow", "clipworks") == set()
