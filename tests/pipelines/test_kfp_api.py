"""Asking KFP: every answer that is none is one line without a token, and the token goes to one place."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.cluster import kfp_api
from pipelines.cluster.kfp_api import KfpApi, KfpError, KfpRun, Task, executors
from pipelines.cluster.spec import Kfp

TOKEN = "a-token-that-no-message-shows"
PAGE = "<!doctype html><html><title>Sign in</title></html>"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp_api, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def api(kfp: Any) -> KfpApi:
    return KfpApi(Kfp(endpoint=kfp.url))


@pytest.fixture
def signed(kfp: Any, monkeypatch: pytest.MonkeyPatch) -> KfpApi:
    """One that has a token."""
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    return KfpApi(Kfp(endpoint=kfp.url))


def refusal(do: Any, *arguments: Any) -> KfpError:
    with pytest.raises(KfpError) as caught:
        do(*arguments)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    return caught.value


def test_an_experiment_is_made_once(kfp: Any, api: KfpApi) -> None:
    first = api.experiment("clipworks")
    assert api.experiment("clipworks") == first
    assert kfp.posted("/experiments") == [{"display_name": "clipworks"}]


def test_a_profile_is_the_experiments_namespace(kfp: Any) -> None:
    KfpApi(Kfp(endpoint=kfp.url, profile="team-a")).experiment("clipworks")
    assert kfp.posted("/experiments") == [{"display_name": "clipworks", "namespace": "team-a"}]


def test_the_token_goes_into_the_authorization_header_only(kfp: Any, signed: KfpApi) -> None:
    kfp.token = TOKEN
    signed.experiment("clipworks")
    for _, path, headers, body in kfp.seen:
        assert headers.pop("Authorization") == f"Bearer {TOKEN}"
        assert TOKEN not in json.dumps([path, headers, body])


def test_a_cookie_is_sent(kfp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_COOKIE", "authservice_session=abc")
    KfpApi(Kfp(endpoint=kfp.url)).experiment("clipworks")
    assert kfp.seen[0][2]["Cookie"] == "authservice_session=abc"


def test_nobody_there() -> None:
    error = refusal(KfpApi(Kfp(endpoint="http://127.0.0.1:9")).run, "x")
    assert "http://127.0.0.1:9: no KFP answers there (connection refused); start the port-forward" in str(error)
    assert error.is_passing


def test_no_answer(kfp: Any, api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(kfp_api, "_SECONDS", 0.2)
    hold = threading.Event()

    def slow(method: str, path: str) -> None:
        hold.wait(timeout=10)

    kfp.answer = slow
    error = refusal(api.run, "x")
    hold.set()
    assert "KFP gave no answer in" in str(error)


@pytest.mark.parametrize(
    ("answer", "words", "is_passing"),
    [
        ((200, "text/html", PAGE), ["answers with a web page, not KFP's API", "kfp.endpoint", "KFP_TOKEN"], False),
        ((200, "text/plain", "hello"), ["answers with text/plain, not KFP's API"], False),
        ((200, "application/json", "[]"), ["not KFP's API"], False),
        ((200, "application/json", "{}"), ["gives no run_id"], False),
        (
            (302, "text/html", "https://dex.test/auth?state=1"),
            ["sends on to https://dex.test/auth", "not KFP's"],
            False,
        ),
        ((401, "text/html", PAGE), ["KFP asks who you are (401); put a bearer token into KFP_TOKEN"], False),
        (
            (403, "application/json", '{"message": "no access"}'),
            ["(403); check kfp.profile (none)", "no access"],
            False,
        ),
        ((404, "text/plain", "404 page not found"), ["has nothing there (404, text/plain)", "kfp.endpoint"], False),
        ((404, "application/json", '{"message": "run x not found"}'), ["no such thing: run x not found"], False),
        ((500, "application/json", '{"message": "database\\nis away"}'), ["fails with 500: database is away"], True),
        ((503, "text/html", PAGE), ["fails with 503: without a reason"], True),
    ],
)
def test_answers_that_are_none(kfp: Any, api: KfpApi, answer: Any, words: list[str], is_passing: bool) -> None:
    kfp.answer = lambda method, path: answer
    error = refusal(api.run, "x")
    assert str(error).startswith(f"{kfp.url}: ")
    assert [word for word in words if word not in str(error)] == [], str(error)
    assert error.is_passing is is_passing


def test_a_token_that_is_not_accepted(kfp: Any, signed: KfpApi) -> None:
    kfp.token = "another"
    assert "(401); renew the token in KFP_TOKEN" in str(refusal(signed.run, "x"))


def test_a_server_that_repeats_the_token_does_not_bring_it_into_a_message(kfp: Any, signed: KfpApi) -> None:
    kfp.answer = lambda method, path: (400, "application/json", json.dumps({"message": f"bad header Bearer {TOKEN}"}))
    assert "bad header Bearer ***" in str(refusal(signed.run, "x"))


def test_the_token_does_not_follow_a_redirect(kfp: Any, signed: KfpApi) -> None:
    kfp.answer = lambda method, path: None if path == "/elsewhere" else (302, "text/html", f"{kfp.url}/elsewhere")
    refusal(signed.run, "x")
    refusal(signed.experiment, "x")
    assert all(path != "/elsewhere" for _, path, _, _ in kfp.seen)


def test_a_hiccup_is_asked_again_and_a_change_is_not(kfp: Any, api: KfpApi) -> None:
    answers: Iterator[Any] = iter([(503, "text/plain", ""), (502, "text/plain", ""), None])
    kfp.answer = lambda method, path: next(answers)
    assert api._get("experiments", {"filter": json.dumps({"predicates": [_named("x")]})}) == {}
    kfp.answer = lambda method, path: (503, "text/plain", "")
    refusal(api.terminate, "x")
    assert len(kfp.posted("x:terminate")) == 1


def _named(name: str) -> dict[str, Any]:
    return {"operation": 1, "key": "display_name", "stringValue": name}


def test_certificates_that_are_not_there(tmp_path: Any) -> None:
    with pytest.raises(KfpError, match=r"kfp\.ca_file"):
        KfpApi(Kfp(endpoint="https://kfp.test", ca_file=str(tmp_path / "gone.pem")))


def test_https_where_there_is_none(kfp: Any) -> None:
    endpoint = kfp.url.replace("http://", "https://")
    assert "is it http://?" in str(refusal(KfpApi(Kfp(endpoint=endpoint)).run, "x"))


def test_a_log_that_kfp_does_not_have_is_none(kfp: Any, api: KfpApi) -> None:
    kfp.logs["pod-1"] = "hello\n"
    assert api.log("r", "pod-1") == "hello\n"
    assert api.log("r", "pod-2") is None
    kfp.answer = lambda method, path: (200, "text/html", PAGE)
    assert api.log("r", "pod-1") is None


def test_the_pods_of_a_task_are_found_below_its_node_only() -> None:
    nodes = (
        Task("embed-2", "RUNNING", "wf-embed-2-5", ("wf-31",), ""),
        Task("executor", "RUNNING", "wf-retry-executor-31", ("wf-32", "wf-33"), ""),
        Task("executor(0)", "FAILED", "wf-impl-32", (), ""),
        Task("executor(1)", "RUNNING", "wf-impl-33", ("wf-40",), ""),
        Task("evaluate-driver", "PENDING", "wf-driver-40", (), ""),
        Task("embed", "SUCCEEDED", "wf-embed-6", ("wf-51",), ""),
        Task("executor", "SUCCEEDED", "wf-impl-51", (), ""),
    )
    run = KfpRun("r", "RUNNING", "", nodes)
    assert [task.pod for task in executors(run, "embed-2")] == ["wf-impl-32", "wf-impl-33"]
    assert [task.pod for task in executors(run, "embed")] == ["wf-impl-51"]
    assert list(executors(run, "report")) == []
