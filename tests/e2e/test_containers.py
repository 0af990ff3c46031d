"""The image, built without any registry, and the whole small pipeline in containers of it: the same bytes as here."""

import importlib.util
import itertools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.artifacts import Record
from data.place import Place
from data.stage import run_stage
from pipelines.recipe import parse_recipe
from pipelines.runs import read_run
from pipelines.yaml_text import parse_yaml, to_yaml

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]
_SPEC = importlib.util.spec_from_file_location("container_engine", Path(__file__).with_name("engine.py"))
engines = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(engines)
ROOT = engines.ROOT
RECIPE = runpy.run_path(str(ROOT / "tests" / "pipelines" / "conftest.py"))["RECIPE"]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CPUS = 2  # of a rank, here and there: sums depend on how many threads share them
SMALL_LAYER_BYTES = 25_000_000


@pytest.fixture(scope="module")
def engine():
    """An engine with the CPU image."""
    reason = engines.why_not()
    if reason:
        pytest.skip(reason)
    made = engines.Engine()
    try:
        made.make_base()
        made.build(VERSION="1.2.3", REVISION="0123456", SOURCE="https://example.org/clipworks")
        made.serve()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the small recipe, its pictures and captions; a path with a space, as users have."""
    folder = tmp_path_factory.mktemp("small world")
    pool = folder / "pool"
    (pool / "images").mkdir(parents=True)
    rows = ["image,caption,group"]
    for number in range(12):
        colour = "red" if number % 2 else "blue"
        Image.new("RGB", (16, 16), (number * 20, 0, 255 - number * 20)).save(pool / "images" / f"{number}.png")
        rows.append(f"{number}.png,a {colour} thing {number},{colour}")
    (pool / "captions.csv").write_text("\n".join(rows) + "\n")
    text = RECIPE.replace("IMAGES", str(pool / "images")).replace("CAPTIONS", str(pool / "captions.csv"))
    small = parse_yaml(text, "small")
    small["stages"]["init"]["architecture"] = TINY
    small["stages"]["embed"]["queries"] += ['{{$.x}} "python3" {c}', "bücher"]  # what kfp and a shell might take apart
    small["stages"]["report"]["headline"][-1] = "text_to_image_R@10"  # a number that this evaluation has
    (folder / "small.yaml").write_text(to_yaml(small))
    return folder


def command(engine, world: Path, root: Path, recipe: str = "small.yaml", **place: Any) -> tuple[list[str], dict]:
    """(`clipworks run` in containers, its environment)."""
    path = world / f"{root.name}.place.yaml"
    values = {"root": str(root), "runner": "container", "image": engines.IMAGE, "wandb_mode": "disabled"}
    path.write_text(to_yaml({**values, "cpus_per_worker": CPUS, **place}))
    words = [str(Path(sys.executable).with_name("clipworks")), "run", recipe, "--place", str(path), "--name", "test"]
    secret = {"AWS_SECRET_ACCESS_KEY": "a-key-that-nobody-prints"}
    return words, {**os.environ, **secret, "DOCKER_HOST": engine.address, "NO_COLOR": "1", "COLUMNS": "160"}


def run(engine, world: Path, root: Path, recipe: str = "small.yaml", **place: Any) -> subprocess.CompletedProcess[str]:
    words, environment = command(engine, world, root, recipe, **place)
    return subprocess.run(words, env=environment, cwd=world, capture_output=True, text=True, timeout=2000)


def records(root: Path) -> dict[str, Record]:
    """Stage -> record of its artifact."""
    found = root.glob("[!.]*/record.json")
    return {path.parent.name.rpartition("-")[0]: Record.model_validate_json(path.read_bytes()) for path in found}


@pytest.fixture(scope="module")
def contained(engine, world, tmp_path_factory):
    """The whole small pipeline, run in containers: (its root, what the command said)."""
    root = tmp_path_factory.mktemp("contained") / "runs"
    done = run(engine, world, root)
    log = root / ".logs" / "test" / "kfp.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text()[-6000:] if log.exists() else "")
    return root, done.stdout


# ------------------------------------------------------------------------------------------------------ what it makes


def test_containers_make_what_this_process_makes(contained, world, tmp_path, session_ray):
    recipe = parse_recipe(parse_yaml((world / "small.yaml").read_text(), "small"))
    place = Place(root=str(tmp_path), cpus_per_worker=CPUS, wandb_mode="disabled")
    uris: dict[str, str] = {}
    for name in recipe.order():
        parents = {role: uris[stage] for role, (stage, _) in recipe.stages[name].roles().items()}
        uris[name] = run_stage(name, recipe.stages[name], parents, place).uri
    here, there = records(tmp_path), records(contained[0])
    assert set(there) == set(recipe.stages) == set(here)
    for name in recipe.order():
        assert there[name].fingerprint == here[name].fingerprint, name
        assert there[name].checksums == here[name].checksums, name
        assert there[name].counts == here[name].counts, name
        # the machine's Python may be another Python 3 than Debian's; what it imports must not be
        assert there[name].packages == here[name].packages, name
    assert all(there[name].checksums for name in recipe.order())


def test_the_run_is_told_as_one_of_processes(contained, engine):
    root, said = contained
    for stage in ("pairs", "split", "match", "curate", "init", "pretrain", "embed", "evaluate", "report"):
        assert re.search(rf"^{stage} +done in ", said, re.MULTILINE), stage
    assert "96/96 pairs" in said or "96 samples seen" in said
    record = read_run(str(root), "test")
    assert (record.state, record.image.split("@")[0]) == ("finished", engines.IMAGE.rpartition(":")[0])
    assert engine.inspect(record.image)["Id"] == engine.inspect()["Id"]


def test_what_it_leaves_belongs_to_the_user_and_holds_no_key(contained, engine):
    root, said = contained
    everything = [path for path in root.rglob("*") if path.is_file()]
    assert {path.stat().st_uid for path in everything} == {os.getuid()}
    assert not [path for path in everything if b"a-key-that-nobody-prints" in path.read_bytes()]
    assert "a-key-that-nobody-prints" not in said
    assert not (root / ".kfp" / "test").exists()
    assert engine.containers() == []


def test_running_again_starts_no_container(contained, world, engine):
    done = run(engine, world, contained[0], image="localhost/no-such-image:1")
    assert done.returncode == 0, done.stderr
    assert "0 of 9 stages to run" in done.stdout


# --------------------------------------------------------------------------------------------- mistakes and accidents


def test_a_users_mistake_in_a_container_is_exit_2_with_its_reason(engine, world, tmp_path):
    small = parse_yaml((world / "small.yaml").read_text(), "small")
    pairs = small["stages"]["pairs"]
    pairs["pool"]["caption_column"] = "captoin"
    (world / "wrong.yaml").write_text(to_yaml({**small, "stages": {"pairs": pairs}}))
    done = run(engine, world, tmp_path / "wrong", "wrong.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: stage pairs: ")
    assert "captoin" in done.stderr.splitlines()[0]
    assert engine.containers() == []


def test_an_image_that_is_not_there_is_said_before_anything_runs(engine, world, tmp_path):
    done = run(engine, world, tmp_path / "missing", image="no-such-image:1")
    assert done.returncode == 2
    assert done.stderr == (
        "error: image: 'no-such-image:1': not on this machine, and its name has no registry to pull it from; "
        "build it (k8s/images/README.md) or name another\n"
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_leaves_no_container(engine, world, tmp_path, how):
    words, environment = command(engine, world, tmp_path / "ended")
    victim = subprocess.Popen(words, env=environment, cwd=world, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(engine.containers)
    victim.send_signal(how)
    victim.wait(timeout=120)
    wait_for(lambda: not engine.containers())
    time.sleep(2)  # longer than a task needs to start the next one
    assert engine.containers() == []


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------------- the image


def test_the_image_says_what_it_is(engine):
    config = engine.inspect()["Config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items() if "opencontainers" in name}
    assert (labels["version"], labels["revision"]) == ("1.2.3", "0123456")
    assert (labels["source"], labels["licenses"]) == ("https://example.org/clipworks", "Apache-2.0")
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["clipworks"]
    assert "PYTHONSAFEPATH=1" in config["Env"]


def test_the_image_holds_a_runtime_and_no_tools(engine):
    script = "for name in gcc cc g++ make ld pip pip3 uv git curl; do command -v $name && echo found $name; done; true"
    assert engine.run("-c", script, options=("--entrypoint=sh",)) == ""
    script = "id -u; for name in clipworks ray bash grep wget; do command -v $name; done; ls -A /mnt /run/secrets /tmp"
    assert engine.run("-c", script, options=("--entrypoint=sh",)).split() == [
        "1000", "/opt/clipworks/bin/clipworks", "/opt/clipworks/bin/ray", "/usr/bin/bash", "/usr/bin/grep",
        "/usr/bin/wget", "/mnt:", "/run/secrets:", "/tmp:",
    ]  # fmt: skip


def test_the_command_is_the_entry(engine):
    assert engine.run("--version") == "clipworks 0.1.0\n"
    assert "usage: clipworks" in engine.run()


def test_any_user_works_in_it(engine):
    """As OpenShift's random numbers and `runner: container` on a machine whose user is not 1000 have it."""
    program = (
        "import getpass, pathlib, data, torch, torchvision, open_clip, ray; pathlib.Path.home().joinpath('x').touch();"
        "getpass.getuser(); print(data.__file__, torch.nn.Conv2d(3, 3, 3)(torch.ones(1, 3, 8, 8)).shape)"
    )
    options = ("--entrypoint=python3", "--user=123456:0", "--cap-drop=ALL", "--security-opt=no-new-privileges")
    said = engine.run("-c", program, options=options)
    assert re.search(r"/opt/clipworks/lib/python3.\d+/site-packages/data/__init__.py torch.Size", said), said


def test_a_ray_node_starts_as_the_images_user_and_answers_kuberays_probes(engine):
    probe = "wget --tries 3 -T 20 -q -O- http://localhost:8265/api/gcs_healthz | grep success"
    script = (
        "ray start --head --num-cpus=1 --dashboard-host=127.0.0.1 --object-store-memory=80000000 "
        f"--disable-usage-stats >/tmp/ray.log 2>&1 || cat /tmp/ray.log; "
        f"for i in 1 2 3 4 5 6 7 8; do {probe} && exit 0; sleep 2; done; exit 1"
    )
    options = ("--entrypoint=bash", "--network=none", "--shm-size=512m", "--env=RAY_AUTH_MODE=disabled")
    said = engine.do("podman", "run", "--rm", *options, engines.IMAGE, "-c", script)
    assert "success" in said


def test_no_layer_holds_how_packages_were_reached(engine):
    told = engine.do("podman", "history", "--no-trunc", engines.IMAGE) + json.dumps(engine.inspect())
    hosts = {engines.MARK, *re.findall(r"https?://([^/\s:@]+)", json.dumps(indexes()))}
    assert not [host for host in hosts if host in told]
    mounted = Path(engine.do("podman", "image", "mount", engines.IMAGE).strip())
    try:
        files = (path for path in mounted.rglob("*") if path.is_file() and not path.is_symlink())
        small = (path for path in files if path.stat().st_size < 100_000 and not is_a_packages_own(path))
        held = [path for path in small if holds(path, hosts)]
        assert held == []
        assert not (mounted / "etc" / "pip.conf").exists()
    finally:
        engine.do("podman", "image", "unmount", engines.IMAGE)


def indexes() -> dict[str, str]:
    """Where this machine gets its packages, if that is not PyPI."""
    names = (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "UV_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_INDEX",
        "UV_EXTRA_INDEX_URL",
    )
    return {name: os.environ[name] for name in names if name in os.environ and "pypi.org" not in os.environ[name]}


def is_a_packages_own(path: Path) -> bool:
    """Whether a file came inside a package; an installer writes beside it, into the folder of its metadata."""
    folders = path.parts
    ours = "site-packages" in folders and path.parent.name.endswith(".dist-info")
    return not ours and ("site-packages" in folders or {"usr"} & set(folders[-6:-1]))


def holds(path: Path, words: set[str]) -> bool:
    content = path.read_bytes()
    return any(word.encode() in content for word in words)


def test_a_code_change_rebuilds_one_small_layer(engine, tmp_path):
    context = tmp_path / "clipworks"
    context.mkdir()
    for name in ("components", "data", "docs/methods", "evaluation", "pipelines", "training", "k8s"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE", ".containerignore"):
        shutil.copy(ROOT / name, context / name)
    (context / "data" / "changed.py").write_text('"""New."""\n')
    engine.build(context, "localhost/clipworks:changed", VERSION="1.2.3", REVISION="changed")
    before, after = (
        engine.inspect(name)["RootFS"]["Layers"] for name in (engines.IMAGE, "localhost/clipworks:changed")
    )
    changed = [layer for layer in after if layer not in before]
    assert len(changed) <= 2
    steps = json.loads(engine.do("podman", "history", "--no-trunc", "--format", "json", "localhost/clipworks:changed"))
    above = list(itertools.takewhile(lambda step: " sync " not in step["CreatedBy"], steps))
    assert 0 < len(above) < len(steps)
    assert sum(step["size"] for step in above) < SMALL_LAYER_BYTES


def test_the_context_holds_code_only(engine, tmp_path):
    (tmp_path / "Containerfile").write_text(f"FROM {engines.BASE}\nCOPY . /all\n")
    engine.do("buildah", "build", "--pull-never", "-t", "localhost/context", "-f", tmp_path / "Containerfile", ROOT)
    mounted = Path(engine.do("podman", "image", "mount", "localhost/context").strip())
    names = {path.name for path in (mounted / "all").iterdir()}
    junk = [path for path in (mounted / "all").rglob("*") if path.name == "__pycache__" or path.suffix == ".pyc"]
    pictures = list((mounted / "all" / "docs").rglob("*.png"))
    engine.do("podman", "image", "unmount", "localhost/context")
    files = {"LICENSE", "README.md", "pyproject.toml", "uv.lock"}
    assert names == files | {"components", "data", "docs", "evaluation", "pipelines", "training"}
    assert pictures == []
    assert junk == []


def test_the_gpu_image_differs_in_what_it_keeps_and_says_only():
    cpu, gpu = ((ROOT / "k8s" / "images" / f"Containerfile.{kind}").read_text() for kind in ("cpu", "gpu"))
    only = {line for line in gpu.splitlines() if line not in cpu.splitlines() and not line.startswith("#")}
    assert all(re.match(r"(ARG LEAVE_OUT|    (NVIDIA|RAY)_|      org\..*\.description=)", line) for line in only), only
    assert 'ARG LEAVE_OUT="pip"' in gpu
    assert "NVIDIA_VISIBLE_DEVICES=all" in gpu


def test_both_images_are_made_with_the_makefiles_uv():
    (version,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for kind in ("cpu", "gpu"):
        assert f"\nARG UV_VERSION={version}\n" in (ROOT / "k8s" / "images" / f"Containerfile.{kind}").read_text()
