"""What a failed stage leaves: real runs that fail in each way, and the page made of what is known."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.failure import Failure, failure_of
from components.resources import look, oom_kills
from data.errors import ShardError, facts_of, located, locating, with_output
from data.output import clean, redacted, tail_lines
from pipelines.cli import make_parser
from pipelines.failures.failing import begun_stage
from pipelines.failures.page import as_html, as_text
from pipelines.failures.postmortem import Case, last_good, leave_page, make_postmortem
from pipelines.here.evidence import Ending, Process, noted, signal_of, verdict
from pipelines.runs import RunRecord, StageOfRun, read_run, write_run
from pipelines.yaml_text import to_yaml

NOTHING_SEEN = Ending()
SECRET = "wJalr-Secret-0123456789"
FAILING = """
import os, signal
how = os.environ.get("FAIL_SPLIT")
if how:
    import data.split
    from data.errors import ShardError, located
    def broken(spec, work):
        work.events.progress(3, 12, "pairs", "halfway")
        print("the secret is", os.environ["AWS_SECRET_ACCESS_KEY"], "<script>alert(1)</script>", flush=True)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "user":
            raise located(ShardError("uid 'u7' in shard 00003: torn"), uid="u7", shard="00003")
        return 1 / 0
    data.split.run = broken
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run(small: dict[str, Any], tmp_path: Path, root: Path) -> Any:
    """Run the first two stages of the small recipe; `how` the second fails."""
    recipe = tmp_path / "two.yaml"
    recipe.write_text(to_yaml({**small, "stages": {name: small["stages"][name] for name in ("pairs", "split")}}))
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FAILING)
    place = tmp_path / "place.yaml"
    place.write_text(to_yaml({"root": str(root), "wandb_mode": "disabled"}))

    def start(how: str, *more: str) -> subprocess.CompletedProcess[str]:
        program = "import sys; from pipelines.cli import main; sys.exit(main())"
        words = ["run", str(recipe), "--place", str(place), "--name", how, *more]
        environment = {
            **os.environ, "PYTHONPATH": f"{site}:{Path(__file__).parents[2]}", "AWS_SECRET_ACCESS_KEY": SECRET,
            "FAIL_SPLIT": "" if how == "good" else how, "NO_COLOR": "1",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-P", "-c", program, *words], env=environment, capture_output=True, text=True, timeout=300
        )

    return start


def pages(root: Path, name: str) -> tuple[str, str]:
    folder = root / ".runs" / name / "postmortem"
    return (folder / "split.txt").read_text(), (folder / "split.html").read_text()


@pytest.mark.e2e
def test_a_run_that_fails_leaves_a_page_in_each_way_that_it_may_fail(run: Any, root: Path) -> None:
    """One test for three ways: the good run that they are compared with is the dear part."""
    good = run("good", "--set", "title=Then")
    assert good.returncode == 0, good.stdout + good.stderr
    changed = ("--set", "stages.split.seed=5")

    killed = run("kill", *changed)
    assert killed.returncode == 1
    assert "stage split killed by SIGKILL" in killed.stderr
    assert f"post-mortem: {root}/.runs/kill/postmortem/split.html" in killed.stderr
    assert killed.stderr.splitlines()[-1].startswith("continue: clipworks run ")
    assert read_run(str(root), "kill").failed_stage == "split"
    text, html = pages(root, "kill")
    assert "split killed by SIGKILL" in text
    assert "3/12 pairs  halfway" in text
    assert "most memory of the run's processes" in text

    defect = run("defect", *changed)
    assert defect.returncode == 1
    text, html = pages(root, "defect")
    assert "ZeroDivisionError: division by zero" in text
    assert "return 1 / 0" in text
    assert "the secret is *** <script>alert(1)</script>" in text
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "stages.split.seed: 0 -> 5" in text
    assert "title: Then -> Small recipe" in text
    assert text.index("stages.split.seed: ") < text.index("title: ")  # those of the stage that failed come first
    retry = ["clipworks", "retry", "defect", "--stage", "split", "--root", str(root)]
    assert shlex.split(text[text.index("clipworks retry") :].partition("\ngo on")[0].replace("\\\n", " ")) == retry
    assert make_parser().parse_args(retry[1:]).run == "defect"  # the command is there

    user = run("user", *changed)
    assert user.returncode == 2
    assert user.stderr.splitlines()[0] == "error: stage split: uid 'u7' in shard 00003: torn"
    assert [line.partition(":")[0] for line in user.stderr.splitlines()] == ["error", "log", "post-mortem", "continue"]
    text, html = pages(root, "user")
    assert re.search(r"^shard +00003$", text, re.MULTILINE)
    assert re.search(r"^uid +u7$", text, re.MULTILINE)
    for name in ("kill", "defect", "user"):
        for page in pages(root, name):
            assert SECRET not in page
        assert SECRET not in "".join(path.read_text() for path in (root / ".runs" / name).rglob("*.json"))
        assert all(len(line) < 100 for line in pages(root, name)[0].splitlines())


def record(**changes: Any) -> RunRecord:
    stages = {"pretrain": StageOfRun(fingerprint="f" * 64, artifact="pretrain-ffffffffffff", reused=False)}
    values: dict[str, Any] = {
        "name": "r1", "state": "failed", "started": 1000.0, "ended": 1090.0, "command": ("clipworks", "run", "r"),
        "recipe": {"name": "r", "stages": {"pretrain": {"kind": "train", "seed": 1}}}, "place": {"root": "/none"},
        "stages": stages, "versions": {"torch": "2"}, "failed_stage": "pretrain",
    }  # fmt: skip
    return RunRecord(**{**values, **changes})


def case(root: Path, failure: Failure | None, ending: Ending = NOTHING_SEEN, **changes: Any) -> Case:
    return Case(str(root), record(**changes), "pretrain", failure, ending, None, "clipworks run r", on="c.yaml")


def test_every_rank_has_its_last_lines_and_the_first_failure_is_named(root: Path) -> None:
    lines = {"rank 0": ["(lost: RuntimeError: Connection closed by peer)", "waiting"], "rank 1": ["(user: torn)"]}
    error = with_output(located(ShardError("torn"), rank=1, uid="u7", doing="step 3, data"), lines)
    failure = failure_of("pretrain", error, str(root))
    assert failure.where == "rank 1"
    page = make_postmortem(case(root, failure))
    assert dict(page.about)["rank"] == "1"
    assert [name for name, _ in page.about][:5] == ["stage", "kind", "rank", "doing", "uid"]  # what says most first
    assert set(page.outputs) == {"rank 0", "rank 1"}
    text = as_text(page)
    assert "Last lines: rank 0" in text
    assert "clipworks retry r1 --stage pretrain --on c.yaml" in text
    assert Failure.model_validate_json(failure.model_dump_json()) == failure


def test_the_last_good_run_is_the_newest_finished_one_of_the_same_recipe_before() -> None:
    runs = [
        record(name="old", state="finished", started=1.0),
        record(name="newer", state="finished", started=2.0),
        record(name="failed", started=3.0),
        record(name="other", state="finished", started=4.0, recipe={"name": "another", "stages": {}}),
        record(name="later", state="finished", started=2000.0),
    ]
    best = last_good(record(), runs)
    assert best is not None
    assert best.name == "newer"
    assert last_good(record(), runs[2:]) is None


def test_without_an_earlier_run_that_is_said_and_versions_are_compared_where_there_is_one(root: Path) -> None:
    assert "no earlier run of recipe 'r' finished" in as_text(make_postmortem(case(root, None)))
    write_run(str(root), record(name="good", state="finished", started=1.0, versions={"torch": "1"}))
    page = make_postmortem(case(root, None))
    assert page.version_changes == [("torch", "1", "2")]
    assert page.changes == []
    assert "no recipe field differs" in as_text(page)


def test_a_root_that_cannot_be_written_leaves_the_page_in_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "runs"  # below a file: no folder can be made there
    said = leave_page(case(root, None), tmp_path / "logs")
    assert said == f"post-mortem: {tmp_path}/logs/pretrain.html"
    assert "not written where it belongs" in (tmp_path / "logs" / "pretrain.txt").read_text()
    assert leave_page(case(root, None)).startswith("post-mortem: none (StorageError")  # and never an error of its own


@pytest.mark.parametrize(
    ("ending", "words", "evidence"),
    [
        (Ending(-9), "killed by SIGKILL", "did not move"),
        (Ending(-9, {"kernel": 1}), "killed by SIGKILL: out of memory", "1 process was killed for memory"),
        (Ending(137, {"kernel": 2}), "killed by SIGKILL: out of memory", "2 processes were"),
        (Ending(-11), "ended by SIGSEGV: a crash in native code", ""),
        (Ending(3), "ended with exit code 3, without a word", ""),
        (Ending(), "ended without a word", ""),
    ],
)
def test_verdicts(ending: Ending, words: str, evidence: str) -> None:
    said, told = verdict(ending)
    assert said == words
    assert evidence in " ".join(told)


def test_signals_of_processes_and_of_containers() -> None:
    assert signal_of(-signal.SIGTERM) == signal_of(143) == "SIGTERM"
    assert signal_of(None) is signal_of(1) is signal_of(300) is None


def test_a_failed_steps_exit_code_is_written_down(tmp_path: Path) -> None:
    assert noted(lambda *_: 0, tmp_path)([], None) == 0
    assert list(tmp_path.iterdir()) == []
    assert noted(lambda *_: -9, tmp_path)([], None) == -9
    assert json.loads((tmp_path / "ending.json").read_text())["exit"] == -9


def test_memory_of_the_runs_processes_is_shown_with_the_largest(root: Path) -> None:
    ending = Ending(-9, most=(Process("pipelines.here.steps", 7, 3_000_000_000),), most_bytes=4_000_000_000)
    rows = dict(make_postmortem(case(root, None, ending)).resources)
    assert rows == {"most memory of the run's processes": "4.00 GB", "- pipelines.here.steps (7)": "3.00 GB"}


def test_the_stage_that_began_and_never_ended_is_the_one_that_was_killed(root: Path) -> None:
    class Plan:
        def __init__(self, name: str) -> None:
            self.name, self.artifact = name, None

        def events_uri(self, root: str) -> str:
            return f"{root}/{self.name}.jsonl"

    def write(name: str, *events: tuple[float, str]) -> None:
        root.mkdir(exist_ok=True)
        lines = [json.dumps({"time": time, "stage": name, "event": event}) for time, event in events]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    write("a", (1001, "started"), (1002, "finished"))
    write("b", (5, "started"), (1003, "started"), (1004, "progress"))
    write("c", (5, "started"))  # of an earlier run
    plans: list[Any] = [Plan(name) for name in "abcd"]
    assert begun_stage(str(root), record(), plans) == "b"
    assert begun_stage(str(root), record(started=2000.0), plans) is None


def test_facts_travel_with_an_error_and_its_causes_and_the_nearest_stands() -> None:
    with pytest.raises(ShardError) as caught, locating(shard="00003", phase=None), locating(uid="u1", shard="near"):
        raise ShardError("x")
    assert facts_of(caught.value) == {"uid": "u1", "shard": "near"}
    outer = RuntimeError("wrapped")
    outer.__cause__ = caught.value
    assert facts_of(located(outer, rank=3)) == {"rank": "3", "uid": "u1", "shard": "near"}


def test_secrets_and_colours_leave_lines_and_long_ones_are_cut() -> None:
    values = {"AWS_SECRET_ACCESS_KEY": SECRET, "HOME": "/root/abcdef", "MY_TOKEN": "x"}
    assert redacted(f"a {SECRET} in /root/abcdef x", values) == "a *** in /root/abcdef x"
    word = {"AWS_ACCESS_KEY_ID": "clipworks", "AWS_SECRET_ACCESS_KEY": "opensesame"}
    assert redacted("s3://clipworks/runs opensesame", word) == "s3://clipworks/runs ***"
    assert redacted("https://me:pass@host/ Bearer abc.def-12345") == "https://***@host/ Bearer ***"
    assert clean([":job_id:01", "\x1b[31mred\x1b[0m", "", "10%\r20%", "y" * 9000])[:2] == ["red", "20%"]
    assert len(clean(["y" * 9000])[0]) == 2000


def test_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(50_000)))
    assert tail_lines(path, 2) == ["line 49998", "line 49999"]
    assert tail_lines(tmp_path / "none") == []


def test_counters_of_both_kinds_of_control_groups_are_read(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    for path, text in {
        proc / "vmstat": "oom_kill 4\n",
        proc / "self" / "cgroup": "4:memory:/job\n0::/job\n",
        cgroup / "memory" / "job" / "memory.limit_in_bytes": "9223372036854771712\n",
        cgroup / "job" / "memory.events": "low 0\noom 2\noom_kill 1\n",
        cgroup / "job" / "memory.max": "2000\n",
        cgroup / "job" / "memory.current": "500\n",
        cgroup / "job" / "memory.peak": "1900\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert oom_kills(proc, cgroup)["kernel"] == 4
    seen = look(str(tmp_path), proc, cgroup)
    assert seen.memory_limit_bytes == 2000  # the other hierarchy has none
    assert seen.free_disk_bytes[str(tmp_path)] > 0
    (proc / "self" / "cgroup").write_text("0::/job\n")
    assert oom_kills(proc, cgroup) == {"kernel": 4, "control group": 1}
    assert look(str(tmp_path), proc, cgroup).memory_peak_bytes == 1900


def test_a_command_broken_into_lines_is_still_the_command(root: Path) -> None:
    words = ["clipworks", "run", "a recipe's file.yaml", *(f"--set=stages.a.b{n}={n}" for n in range(12)), "x" * 120]
    text = as_text(make_postmortem(case(root, None)._replace(again=shlex.join(words))))
    begin = text.index("go on with the whole run:\n") + len("go on with the whole run:\n")
    assert shlex.split(text[begin : text.index("\n\n", begin)].replace("\\\n", " ")) == words


def test_the_page_needs_nothing_from_elsewhere(root: Path) -> None:
    html = as_html(make_postmortem(case(root, failure_of("pretrain", ValueError("<b>&"), str(root)))))
    assert "&lt;b&gt;&amp;" in html
    assert not re.search(r"(src|href)=|@import|url\(", html)
    assert 'name="viewport"' in html
    assert socket.gethostname() not in html or len(socket.gethostname()) < 4
