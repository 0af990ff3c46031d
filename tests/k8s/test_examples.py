"""The example cluster files against the overlays they are for: names that exist, pods that are admitted and fit."""

import math
from collections import Counter

import pytest

from components.rayjob import QUEUE, Job, manifest
from pipelines.cluster.spec import read_cluster

KINDS = ("train", "embed", "inspect")


@pytest.fixture
def cluster(k8s, overlay):
    return read_cluster(str(k8s / "examples" / f"{overlay}-cluster.yaml"))


@pytest.fixture
def jobs(cluster):
    """A RayJob of each kind of stage that needs Ray there."""
    from components.runtime import needs_ray

    place = cluster.whole_place()
    assert place.rayjob
    texts = dict.fromkeys(set(Job._fields) - set(Job._field_defaults), "s3://bucket/runs/x")
    return [
        manifest(Job(**{**texts, "name": f"{kind}-0-1", "kind": kind, "stage": kind, "run": "run"}), place)
        for kind in KINDS
        if needs_ray(kind, place)
    ]


def named(objects, kind, namespace=None):
    return {
        thing["metadata"]["name"]
        for thing in objects
        if thing["kind"] == kind and namespace in (None, thing["metadata"].get("namespace"))
    }


def templates(job):
    """(pods, template) of the head and of every group of workers."""
    spec = job["spec"]["rayClusterSpec"]
    workers = [(group["replicas"], group["template"]) for group in spec["workerGroupSpecs"]]
    return [(1, spec["headGroupSpec"]["template"]), *workers]


def test_accounts_namespaces_and_queue_exist(cluster, objects):
    assert cluster.namespace in named(objects, "Namespace")
    assert cluster.service_account in named(objects, "ServiceAccount", cluster.task_namespace())
    assert cluster.ray
    assert cluster.ray.service_account in named(objects, "ServiceAccount", cluster.namespace)
    queues = named(objects, "LocalQueue", cluster.namespace)
    assert {cluster.ray.queue} - {None} == queues  # an overlay with a queue is one whose example uses it


def test_rayjobs_name_what_is_there(cluster, jobs, objects):
    assert jobs
    for job in jobs:
        assert job["metadata"]["namespace"] in named(objects, "Namespace")
        assert job["metadata"]["labels"].get(QUEUE) in (named(objects, "LocalQueue") or {None})
        for _, template in templates(job):
            assert template["spec"]["serviceAccountName"] in named(objects, "ServiceAccount", cluster.namespace)
            (container,) = template["spec"]["containers"]
            assert [source["secretRef"]["name"] for source in container["envFrom"]] == list(cluster.secrets)


def test_kuberay_takes_every_rayjob(jobs, rayjob_schema):
    assert [problem for job in jobs for problem in rayjob_schema.problems(job)] == []


def test_rayjobs_are_admitted_under_restricted(jobs, pod_security):
    for job in jobs:
        for _, template in templates(job):
            assert pod_security.problems(template["spec"]) == []
            assert template["spec"]["automountServiceAccountToken"] is False


def test_every_rayjob_fits_the_quota(jobs, objects, quantities):
    (quota,) = [thing for thing in objects if thing["kind"] == "ResourceQuota"]
    hard = {name: quantities.number(value) for name, value in quota["spec"]["hard"].items()}
    standing = Counter()  # what is always there: the laptop's bucket
    for thing in objects:
        if thing["kind"] == "Deployment":
            standing.update(quantities.requests(thing["spec"]["template"]["spec"]))
    for job in jobs:
        asked = Counter(standing)
        for pods, template in templates(job):
            asked.update({name: pods * value for name, value in quantities.requests(template["spec"]).items()})
        for name, value in asked.items():
            assert value <= hard.get(f"requests.{name}", math.inf), (job["metadata"]["name"], name)
        assert asked["memory"] <= hard["limits.memory"]
        assert sum(pods for pods, _ in templates(job)) + 1 <= hard["pods"]


def test_kueue_admits_every_rayjob_of_an_empty_cluster(jobs, objects, quantities, overlay):
    """Each group of pods must find one flavor with room for all of what it asks for; the flavors fill up."""
    queues = [thing for thing in objects if thing["kind"] == "ClusterQueue"]
    assert len(queues) == (overlay == "gpu")
    for queue in queues:
        (group,) = queue["spec"]["resourceGroups"]
        for job in jobs:
            rooms = [
                {quota["name"]: quantities.number(quota["nominalQuota"]) for quota in flavor["resources"]}
                for flavor in group["flavors"]
            ]
            for pods, template in templates(job):
                asked = {name: pods * value for name, value in quantities.requests(template["spec"]).items()}
                assert set(asked) <= set(group["coveredResources"]), "a resource that Kueue does not know"
                room = next((room for room in rooms if all(room[name] >= value for name, value in asked.items())), None)
                assert room is not None, (job["metadata"]["name"], asked)
                for name, value in asked.items():
                    room[name] -= value
