"""Who may speak to whom in and around the namespace, by the policies as they are written."""

import pytest

DNS, API_SERVER, METADATA = "10.96.0.10", "10.0.0.5", "169.254.169.254"


@pytest.fixture(scope="session")
def ends(network):
    ray = (("ray.io/is-ray-node", "yes"),)
    end = network.End
    operator = (("app.kubernetes.io/name", "kuberay-operator"),)
    return {
        "head": end("10.244.1.1", "clipworks", (*ray, ("ray.io/node-type", "head"))),
        "worker": end("10.244.1.2", "clipworks", (*ray, ("ray.io/node-type", "worker"))),
        "bucket": end("10.244.1.4", "clipworks", (("app.kubernetes.io/name", "clipworks-s3"),)),
        "stranger": end("10.244.1.5", "clipworks"),
        "operator": end("10.244.2.1", "ray-system", operator),
        "false operator": end("10.244.2.2", "default", operator),
        "task": end("10.244.3.1", "kubeflow"),
        "elsewhere": end("10.244.4.1", "default", ray),  # its label counts in our namespace only
        "dns": end(DNS, "kube-system", (("k8s-app", "kube-dns"),)),
        "node's dns": end("169.254.20.10"),
        "other dns": end("8.8.8.8"),
        "web": end("52.216.0.1"),
        "web (v6)": end("2600:1f18::1"),
        "metadata": end(METADATA),
        "metadata (v6)": end("fd00:ec2::254"),
        "api server": end(API_SERVER),
        "private bucket": end("10.1.2.3"),
    }


ALWAYS = [
    ("head", "worker", 40123, True),
    ("worker", "head", 6379, True),
    ("worker", "worker", 10002, True),
    ("operator", "head", 8265, True),
    ("operator", "head", 6379, False),
    ("false operator", "head", 8265, False),
    ("task", "head", 8265, False),
    ("elsewhere", "head", 8265, False),
    ("head", "elsewhere", 6379, False),
    ("stranger", "head", 8265, False),
    ("head", "stranger", 80, False),
    ("stranger", "web", 443, False),
    ("web", "head", 8265, False),
    ("head", "dns", 53, True),
    ("worker", "node's dns", 53, True),
    ("head", "other dns", 53, False),
    ("worker", "web", 443, True),
    ("worker", "web (v6)", 443, True),
    ("worker", "web", 80, False),
    ("worker", "web", 22, False),
    ("worker", "metadata", 80, False),
    ("worker", "metadata", 443, False),
    ("worker", "metadata (v6)", 443, False),
    ("worker", "api server", 6443, False),
    ("worker", "private bucket", 9000, False),
    ("task", "web", 443, True),  # KFP's namespace is not ours to fence
]
ON_THE_LAPTOP = [
    ("worker", "bucket", 8333, True),
    ("task", "bucket", 8333, True),
    ("worker", "bucket", 8888, False),  # SeaweedFS' filer asks nobody for a key
    ("task", "bucket", 8888, False),
    ("task", "bucket", 9333, False),
    ("elsewhere", "bucket", 8333, False),
    ("stranger", "bucket", 8333, False),
    ("bucket", "web", 443, False),
    ("bucket", "head", 8265, False),
]


def policies(objects):
    return [thing for thing in objects if thing["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(("source", "target", "port", "expected"), ALWAYS)
def test_who_may_speak_to_whom(objects, network, ends, source, target, port, expected):
    assert network.may_speak(policies(objects), ends[source], ends[target], port) is expected


@pytest.mark.parametrize(("source", "target", "port", "expected"), ON_THE_LAPTOP)
def test_who_may_speak_to_the_bucket(rendered, network, ends, source, target, port, expected):
    assert network.may_speak(policies(rendered["laptop"]), ends[source], ends[target], port) is expected


def test_names_are_asked_for_by_udp_and_nothing_else_is(objects, network, ends):
    assert network.may_speak(policies(objects), ends["head"], ends["dns"], 53, "UDP")
    assert not network.may_speak(policies(objects), ends["worker"], ends["web"], 443, "UDP")


@pytest.mark.parametrize(
    ("removed", "source", "target", "port", "then"),
    [
        ("default-deny", "elsewhere", "stranger", 80, True),  # without it, everyone reaches what no policy selects
        ("ray", "head", "worker", 40123, False),
        ("ray", "operator", "head", 8265, False),
        ("dns", "head", "dns", 53, False),
        ("s3", "worker", "bucket", 8333, False),
        ("ray-to-s3", "worker", "bucket", 8333, False),
    ],
)
def test_every_policy_is_needed(rendered, network, ends, removed, source, target, port, then):
    all_of_them = policies(rendered["laptop"])
    rest = [policy for policy in all_of_them if policy["metadata"]["name"] != removed]
    assert len(rest) == len(all_of_them) - 1
    assert network.may_speak(all_of_them, ends[source], ends[target], port) is not then
    assert network.may_speak(rest, ends[source], ends[target], port) is then


def test_without_policies_everybody_speaks(network, ends):
    assert network.may_speak([], ends["elsewhere"], ends["head"], 8265)


def test_the_evaluator_reads_expressions_ranges_and_default_ways(network, ends):
    policy = {
        "metadata": {"namespace": "clipworks"},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "ray.io/node-type", "operator": "In", "values": ["head"]}]},
            "ingress": [{"ports": [{"port": 100, "endPort": 200}]}],
        },
    }
    assert network.may_speak([policy], ends["web"], ends["head"], 150)
    assert not network.may_speak([policy], ends["web"], ends["head"], 201)
    assert network.may_speak([policy], ends["web"], ends["worker"], 201)  # not selected
    assert network.may_speak([policy], ends["head"], ends["web"], 201)  # no egress is named: only ingress is closed
