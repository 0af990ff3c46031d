"""What the states of RayJobs and pods say, as the API server returns them."""

from typing import Any

import pytest
from clipworks_fake_kubernetes import HEAD, WORKER, ended, pod, waiting

from components.rayjob_state import (
    end_reason,
    head_starts,
    is_ready,
    is_stuck,
    memory_hint,
    state_of,
    summary,
    waiting_reason,
    why_waiting,
)  # fmt: skip


@pytest.mark.parametrize("rayjob", [{}, {"status": None}, {"spec": {}, "status": {}}])
def test_a_rayjob_that_kuberay_has_not_seen_is_empty(rayjob: dict[str, Any]) -> None:
    state = state_of(rayjob)
    assert (state.deployment, state.job, state.cluster, state.is_over, state.is_suspended) == ("", "", "", False, False)


@pytest.mark.parametrize(
    ("deployment", "job", "is_over", "claims_success"),
    [
        ("Running", "SUCCEEDED", False, False),
        ("Complete", "SUCCEEDED", True, True),
        ("Complete", "STOPPED", True, False),
        ("Failed", "FAILED", True, False),
        ("ValidationFailed", "", True, False),
        ("Retrying", "FAILED", False, False),
    ],
)
def test_ends(deployment: str, job: str, is_over: bool, claims_success: bool) -> None:
    state = state_of({"status": {"jobDeploymentStatus": deployment, "jobStatus": job}})
    assert (state.is_over, state.claims_success) == (is_over, claims_success)


def test_suspended_by_the_spec_or_by_the_status() -> None:
    assert state_of({"spec": {"suspend": True}}).is_suspended
    assert state_of({"status": {"jobDeploymentStatus": "Suspending"}}).is_suspended


def test_what_every_pod_says_on_its_way_is_no_reason() -> None:
    assert waiting_reason(pod("a", containerStatuses=waiting("ContainerCreating", ""))) is None
    assert waiting_reason(pod("a", containerStatuses=waiting("PodInitializing", ""))) is None
    assert waiting_reason(HEAD) is None


def test_reasons_of_init_containers_count() -> None:
    one = pod("a", initContainerStatuses=waiting("CrashLoopBackOff", "back-off 10s"))
    assert waiting_reason(one) == "CrashLoopBackOff: back-off 10s"
    assert not is_stuck(one)
    assert is_stuck(pod("a", containerStatuses=waiting("CreateContainerConfigError", 'secret "x" not found')))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"containerStatuses": ended("OOMKilled", 137)}, "OOMKilled (exit code 137)"),
        ({"containerStatuses": ended("Completed", 0)}, None),
        ({"reason": "Evicted", "message": "The node was low\n on memory"}, "Evicted: The node was low on memory"),
        (
            {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]},
            "PreemptionByScheduler",
        ),
        (
            {"containerStatuses": [{"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}]},
            "Error (exit code 1)",
        ),
    ],
)
def test_how_a_pod_ended(status: dict[str, Any], expected: str | None) -> None:
    assert end_reason(pod("a", **status)) == expected


def test_who_needs_memory() -> None:
    killed = {"containerStatuses": ended("OOMKilled", 137)}
    assert memory_hint(pod("a", is_head=True, **killed)) == "; give ray.head more memory"
    assert memory_hint(pod("a", **killed)) == "; give ray.worker more memory"
    assert memory_hint(pod("a", containerStatuses=ended("Error", 1))) == ""


def test_starts_of_heads_are_pods_and_containers() -> None:
    assert head_starts([WORKER, HEAD]) == {("uid-head", 0)}
    assert head_starts([pod("head", is_head=True, restarts=2)]) == {("uid-head", 2)}


def test_a_pod_is_ready_when_it_says_so() -> None:
    assert is_ready(HEAD)
    assert not is_ready(pod("a", is_ready=False))
    assert not is_ready({"metadata": {"name": "new"}, "status": {}})


def test_the_line_of_the_log_names_at_most_three_pods_that_wait() -> None:
    pods = [pod(f"w{n}", is_ready=False, containerStatuses=waiting("ImagePullBackOff", "x")) for n in range(9)]
    line = summary(state_of({}), [HEAD, *pods], 10, None)
    assert line.startswith("1 of 10 pods run; w0: ImagePullBackOff: x; w1")
    assert line.count("ImagePullBackOff") == 3


def test_events_without_a_time_and_of_others_do_no_harm() -> None:
    events = [
        {"type": "Warning", "reason": "A", "message": "m", "involvedObject": {"name": "job-1-x"}, "eventTime": None},
        {
            "type": "Warning",
            "reason": "B",
            "message": "m",
            "involvedObject": {"name": "job-1"},
            "lastTimestamp": "2026",
        },
        {"type": "Warning", "reason": "C", "message": "m", "involvedObject": {}},
    ]
    assert list(why_waiting([], events, ("job-1", ""))) == ["job-1: B: m", "job-1-x: A: m"]
