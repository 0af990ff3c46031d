"""Rewriting: what the checks let through, one request a distinct caption, resume to the same bytes, both backends."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest

from data import storage
from data.artifacts import Output, Record
from data.errors import BackendError, ShardError
from data.place import Place
from data.rewrite import backends, stage
from data.rewrite.backends import Embedded, Endpoint, model_file, open_backend
from data.rewrite.checks import NEUTRAL, check, compare
from data.rewrite.examples import EXAMPLES
from data.rewrite.journal import Journal
from data.rewrite.prompts import choose_examples, prompt_id, read_completion, request_of
from data.rewrite.stage import complete_all
from data.selection import SELECTION_SCHEMA, write_selection
from data.shards import CaptionLayer, Pair, read_parquet, write_manifest, write_shard
from data.specs import EmbeddedLLM, EndpointLLM, RewriteChecks, RewriteSpec
from data.stage import run_stage

SHARDS = [{"u1": "red apple", "u2": "sad cat"}, {"u0": "red apple", "u3": "tall tree", "u4": None, "u5": "not kept"}]


def make_spec(**fields):
    return RewriteSpec(pairs="pairs", selection="chosen", **fields)


class Fake:
    """Writes "a picture of <caption>"; `fails_after` answers it is gone."""

    concurrency = 2

    def __init__(self, fails_after=None, answer=lambda caption: f" a picture of a {caption}\nnext"):
        self.fails_after, self.answer, self.asked, self.lock = fails_after, answer, [], threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def complete(self, request):
        caption = request.prompt.rsplit("\n", 1)[1].removesuffix(" =>")
        with self.lock:
            if self.fails_after is not None and len(self.asked) >= self.fails_after:
                raise BackendError("gone")
            self.asked.append(caption)
        return self.answer(caption)


def commit(root, kind, name, write):
    out = Output(str(root), name, name.ljust(64, "0"))
    if not storage.exists(out.final_uri):
        write(out.uri)
        out.commit(Record(kind=kind, stage=kind, revision=1, fingerprint=name.ljust(64, "0"), config={}))
    return out.final_uri


def write_pairs(uri):
    tars = [
        write_shard(uri, f"{n:05d}", [Pair(u, b"x", "png", {"alt": c} if c else {}, {}) for u, c in shard.items()])
        for n, shard in enumerate(SHARDS)
    ]
    write_manifest(uri, tars, [])


def write_chosen(uri):
    uids = sorted(uid for shard in SHARDS for uid in shard)
    rest = {"p_keep": 1.0, "draw": 0.0, "reason": ""}
    chosen = pa.Table.from_pylist([{"uid": uid, "kept": uid != "u5", **rest} for uid in uids], SELECTION_SCHEMA)
    write_selection(uri, chosen)


def rewrite(root, monkeypatch, backend, **fields):
    monkeypatch.setattr(stage, "open_backend", lambda spec, place: backend)
    pairs, chosen = commit(root, "shard_set", "pairs", write_pairs), commit(root, "selection", "chosen", write_chosen)
    return run_stage("rewrite", make_spec(**fields), {"pairs": pairs, "selection": chosen}, Place(root=str(root)))


# ------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("source", "text", "reason"),
    [
        ("red apple", "a picture of a red apple", ""),
        ("red apple", "An apple that is red.", ""),
        ("two horses", "a horse, two", ""),
        ("cherry", "an icon of cherries", ""),
        ("red apple", "a picture of an apple", "lost_concept"),
        ("octopus", "an octopus with five arms", "invented"),
        ("red apple", "Red apple!", "unchanged"),
        ("red apple", "", "empty"),
        ("red apple", "...", "empty"),
        ("cat", "cats", "too_short"),
        ("cat", "a cat " * 13, "too_long"),
        ("red apple", "a red apple => an apple", "artefact"),
        ("red apple", "a red\x07 apple", "artefact"),
        ("red apple", "a red apple \ufffd", "artefact"),
        ("cat face", "a cat face with a cat face", "artefact"),
        ("cat face", "a picture of a picture of a cat face", "artefact"),
        ("woman woman", "a woman and a woman", ""),
        ("cup without handle", "a cup with a handle", "lost_concept"),
        ("Icon", "a picture of it", "lost_concept"),  # all words are neutral, so all of them count
        ("Icon", "a picture of an icon", ""),
        ("family: man, boy", "the family, a man and a boy", ""),
    ],
)
def test_checks(source, text, reason):
    assert check(source, text, RewriteChecks()) == reason


def test_check_limits_are_the_recipes():
    assert check("octopus", "an octopus with five arms", RewriteChecks(max_invented=2)) == ""
    assert check("octopus", "an octopus with five arms", RewriteChecks(max_invented=1)) == "invented"
    assert check("red apple", "an apple", RewriteChecks(max_lost=1)) == ""
    assert compare("red apple", "a green apple") == (["red"], ["green"])


def test_negation_and_direction_are_never_neutral():
    assert NEUTRAL.isdisjoint({"no", "not", "without", "left", "right", "up", "down", "over", "under"})


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_our_examples_pass_our_own_checks(name):
    assert len(EXAMPLES[name]) == 16
    verdicts = {source: check(source, target, RewriteChecks()) for source, target in EXAMPLES[name]}
    assert {source: reason for source, reason in verdicts.items() if reason} == {}


# ------------------------------------------------------------------------------------------------------------ prompts


def test_prompt_has_laclips_form():
    lines = request_of("sad  cat\nat home", 0, make_spec(shots=3)).prompt.split("\n")
    pairs = {f"{source} => {target}" for source, target in EXAMPLES["labels"]}
    assert len(lines) == 6  # instruction, blank, three examples, the caption
    assert len(set(lines[2:5])) == 3
    assert set(lines[2:5]) <= pairs
    assert lines[-1] == "sad cat at home =>"


def test_prompt_depends_on_caption_attempt_and_seed_only():
    base = request_of("cat", 0, make_spec())
    assert request_of("cat", 0, make_spec()) == base
    others = [
        request_of("cat", 1, make_spec()),
        request_of("cat", 0, make_spec(seed=1)),
        request_of("dog", 0, make_spec()),
    ]
    assert len({base.seed, *(other.seed for other in others)}) == 4
    assert 0 <= base.seed < 2**31


def test_examples_are_drawn_without_replacement_and_evenly():
    drawn = Counter(pair for salt in range(800) for pair in choose_examples(EXAMPLES["labels"], 4, str(salt)))
    assert len(drawn) == 16
    assert all(140 < times < 260 for times in drawn.values())  # 200 expected, standard deviation 12
    assert sorted(choose_examples(EXAMPLES["labels"], 16, "x")) == sorted(EXAMPLES["labels"])


def test_prompt_id_names_the_words():
    assert prompt_id(make_spec()) == prompt_id(make_spec(seed=9))
    assert prompt_id(make_spec()) != prompt_id(make_spec(examples="captions"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(' "a red cat"\nmore', "a red cat"), ("\n a cat \t here", "a cat here"), ("", ""), ('"', '"')],
)
def test_read_completion(text, expected):
    assert read_completion(text) == expected


# -------------------------------------------------------------------------------------------------------------- stage


def test_layer_serves_every_pair_that_shares_the_caption(tmp_path, monkeypatch):
    fake = Fake(answer=lambda caption: " a sad dog" if caption == "sad cat" else f" a picture of a {caption}\nnext")
    artifact = rewrite(tmp_path, monkeypatch, fake)
    assert sorted(fake.asked) == ["red apple", "sad cat", "tall tree"]  # distinct captions of kept pairs, once each
    rows = {row["uid"]: row for row in CaptionLayer(artifact).captions("rewrite").to_pylist()}
    assert {uid: row["caption"] for uid, row in rows.items()} == {
        "u0": "a picture of a red apple", "u1": "a picture of a red apple", "u3": "a picture of a tall tree",
    }  # fmt: skip
    provenance = json.loads(rows["u0"]["provenance"])
    assert (provenance["model"], provenance["temperature"]) == ("smollm2-135m-instruct", 0.9)
    assert provenance["prompt"] == prompt_id(make_spec())
    tried = {row["caption"]: row for row in read_parquet(artifact.at("rewrites.parquet")).to_pylist()}
    assert (tried["sad cat"]["rewrite"], tried["sad cat"]["reason"]) == ("a sad dog", "lost_concept")
    counts = artifact.record.counts
    assert (counts["distinct_captions"], counts["accepted"], counts["rejected_lost_concept"]) == (3, 2, 1)
    assert counts["captions_written"] == 3
    names = [name for name, _ in storage.list_files(artifact.at("captions"))]
    assert names == ["00000.parquet", "00001.parquet"]


def test_killed_on_the_way_gives_the_same_bytes_and_asks_nothing_twice(tmp_path, monkeypatch):
    whole = rewrite(tmp_path / "a", monkeypatch, Fake(), rewrites_per_caption=3)
    first, second = Fake(fails_after=4), Fake()
    with pytest.raises(BackendError, match="gone"):
        rewrite(tmp_path / "b", monkeypatch, first, rewrites_per_caption=3)
    (state,) = (tmp_path / "b" / ".partial").glob("rewrite-*.state/answers.jsonl")
    kept = len(state.read_text().splitlines())
    with state.open("a") as stream:
        stream.write('{"key": "torn')
    resumed = rewrite(tmp_path / "b", monkeypatch, second, rewrites_per_caption=3)
    assert kept >= 4 - Fake.concurrency
    assert len(second.asked) == 9 - kept
    assert resumed.record == whole.record  # checksums of every file included
    assert not state.exists()


def test_accepted_rewrites_are_numbered_and_distinct(tmp_path, monkeypatch):
    answers = iter(["a dog", "a picture of the {}", "a picture of the {}", "an icon of the {}"] * 3)
    lock = threading.Lock()

    def answer(caption):
        with lock:
            return next(answers).format(caption)

    fake = Fake(answer=answer)
    fake.concurrency = 1
    artifact = rewrite(tmp_path, monkeypatch, fake, rewrites_per_caption=4, max_captions=1, writes="new")
    table = read_parquet(artifact.at("rewrites.parquet")).to_pylist()
    assert sorted(row["reason"] for row in table) == ["", "", "duplicate", "lost_concept"]
    assert sorted(row["source"] for row in table) == ["", "", "new", "new2"]


def test_max_captions_is_a_nested_choice_by_hash():
    captions = {f"caption {i}" for i in range(50)}
    few, more = stage.choose_captions(captions, 10), stage.choose_captions(captions, 20)
    assert len(few) == 10
    assert set(few) < set(more)
    assert few == sorted(few) != sorted(captions)[:10]
    assert stage.choose_captions(captions, None) == sorted(captions)


def test_a_source_too_long_is_not_asked():
    (attempt,) = stage.judge(make_spec(), "word " * 300, {})
    assert (attempt.accepted, attempt.reason) == (False, "source_too_long")


def test_no_caption_of_the_source(tmp_path, monkeypatch):
    with pytest.raises(ShardError, match="no kept pair has a caption of source 'other'"):
        rewrite(tmp_path, monkeypatch, Fake(), caption_source="other")


def test_journal_on_object_storage_keeps_batches():
    uri = "memory://journal-test"
    with Journal(uri) as journal:
        for number in range(70):
            journal.add(str(number), f"text {number}")
        assert [name for name, _ in storage.list_files(uri)] == ["000000.jsonl"]
    with Journal(uri) as again:
        assert len(again.answers) == 70
        again.add("70", "more")
    with Journal(uri) as last:
        assert last.answers["70"] == "more"


# ----------------------------------------------------------------------------------------------------------- endpoint


class Server:
    """An endpoint that answers by script; counts requests and how many are open at once."""

    def __init__(self, script=lambda number: (200, {}), delay=0.0):
        self.seen, self.open, self.most, self.lock = [], 0, 0, threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.seen.append((self.path, self.headers.get("Authorization"), body))
                    number = len(server.seen)
                    server.open += 1
                    server.most = max(server.most, server.open)
                time.sleep(delay)
                status, headers = script(number)
                with server.lock:
                    server.open -= 1
                content = json.dumps({"choices": [{"text": f" {body['prompt']} done"}]}).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def start(*args, **kwargs):
        servers.append(Server(*args, **kwargs))
        return servers[-1]

    monkeypatch.setattr(backends, "BACKOFF_SECONDS", 0.01)
    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def endpoint(url, **fields):
    llm = EndpointLLM(model="tiny", **{"concurrency": 3, **fields})
    return Endpoint(make_spec(llm=llm), llm, url)


def request(prompt="p"):
    return request_of("cat", 0, make_spec())._replace(prompt=prompt)


def test_endpoint_sends_sampling_and_key(serve, monkeypatch):
    monkeypatch.setenv(backends.API_KEY_VARIABLE, "secret-key")
    server = serve()
    with endpoint(server.url) as backend:
        assert backend.complete(request()) == " p done"
    ((path, key, body),) = server.seen
    assert (path, key) == ("/v1/completions", "Bearer secret-key")
    assert (body["model"], body["seed"], body["stop"]) == ("tiny", request().seed, ["\n"])
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.9, 0.95, 77)


def test_endpoint_waits_as_long_as_it_is_told(serve, monkeypatch):
    slept = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    server = serve(lambda number: (429, {"Retry-After": "7"}) if number == 1 else (200, {}))
    with endpoint(server.url) as backend:
        assert backend.complete(request()) == " p done"
    assert len(server.seen) == 2
    assert 7 in slept


@pytest.mark.parametrize(
    ("status", "requests", "told"),
    [
        (500, 3, "HTTP 500, still after 2 retries"),
        (503, 3, "HTTP 503, still after 2 retries"),
        (404, 1, "model 'tiny'"),
        (401, 1, "set CLIPWORKS_LLM_API_KEY"),
    ],
)
def test_endpoint_gives_up_in_one_line_without_the_key(serve, monkeypatch, status, requests, told):
    monkeypatch.setenv(backends.API_KEY_VARIABLE, "secret-key")
    server = serve(lambda _: (status, {}))
    url = server.url.replace("http://", "http://user:password@")
    with endpoint(url, retries=2) as backend, pytest.raises(BackendError, match=told) as error:
        backend.complete(request())
    assert len(server.seen) == requests
    assert not any(secret in str(error.value) for secret in ("secret-key", "password", "\n"))


def test_endpoint_that_is_not_there(serve):
    server = serve()
    server.http.shutdown()
    server.http.server_close()
    with endpoint(server.url, retries=1) as backend, pytest.raises(BackendError, match=r"no answer.*is the server up"):
        backend.complete(request())


def test_requests_in_flight_are_bounded(serve):
    server = serve(delay=0.02)
    requests = [request(f"prompt {i}") for i in range(24)]
    with endpoint(server.url, concurrency=3) as backend:
        answers = {r.prompt: text for r, text in complete_all(backend, requests)}
    assert answers == {r.prompt: f" {r.prompt} done" for r in requests}
    assert 1 < server.most <= 3


def test_first_error_ends_the_asking():
    fake = Fake(fails_after=3)
    with pytest.raises(BackendError, match="gone"):
        list(complete_all(fake, [request(f"x\n{i} =>") for i in range(50)]))
    assert len(fake.asked) == 3


@pytest.mark.parametrize(
    ("url", "told"), [(None, "--place"), ("host:8000", "not an http"), ("ftp://x/v1", "not an http")]
)
def test_bad_llm_url(url, told):
    with pytest.raises(BackendError, match=f"llm_url.*{told}"):
        open_backend(make_spec(llm=EndpointLLM(model="tiny")), Place(llm_url=url))


# ----------------------------------------------------------------------------------------------------------- embedded


def test_model_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(BackendError, match=r"'none\.gguf' is neither a \.gguf file nor one of smollm2"):
        model_file("none.gguf")
    monkeypatch.setitem(backends._SHIPPED, "smollm2-135m-instruct", ("no-such-package", "x.gguf"))
    with pytest.raises(BackendError, match=r"no-such-package.*clipworks\[llm\]"):
        model_file("smollm2-135m-instruct")


def test_missing_xllamacpp(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    (tmp_path / "m.gguf").touch()
    llm = EmbeddedLLM(model=str(tmp_path / "m.gguf"))
    with pytest.raises(BackendError, match=r"clipworks\[llm\]"):
        Embedded(make_spec(llm=llm), llm, 1)


def test_embedded_model_writes():
    pytest.importorskip("xllamacpp", reason="extra `llm` is not installed")
    llm = EmbeddedLLM(slots=2)
    spec = make_spec(llm=llm, shots=6, temperature=0.0, max_tokens=16)
    captions = ["blue chair", "green apple", "old dog"]
    requests = [request_of(caption, 0, spec) for caption in captions]
    with open_backend(spec, Place(cpus_per_worker=1)) as backend:
        answers = {request.key: text for request, text in complete_all(backend, requests)}
    verdicts = [check(c, read_completion(answers[r.key]), spec.checks) for c, r in zip(captions, requests, strict=True)]
    assert "" in verdicts, answers
