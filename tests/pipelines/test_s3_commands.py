"""Commands on a bucket: what planning asks of it, and one line with the fix where it refuses."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.runtime import run_component
from data import s3, storage
from data.errors import RecipeError
from data.place import Place
from data.stage import run_stage
from pipelines.cli import main
from pipelines.planning.plan import make_plan
from pipelines.recipe import read_recipe


@pytest.fixture
def place(seaweed: Any, tmp_path: Path) -> Place:
    return Place(root=f"s3://{seaweed.bucket}/{tmp_path.name}", data_workers=0)


def make_all(path: Path, place: Place) -> dict[str, str]:
    """Make the data stages in this process; their URIs by name."""
    recipe = read_recipe(path)
    made: dict[str, str] = {}
    for name in recipe.order():
        spec = recipe.stages[name]
        parents = {role: made[stage] for role, (stage, _) in spec.roles().items()}
        made[name] = run_stage(name, spec, parents, place).uri
    return made


def test_planning_a_reuse_asks_for_a_listing_or_two_and_each_record_once(
    bad_road: Any, place: Place, data_file: Path
) -> None:
    make_all(data_file, place)
    recipe = read_recipe(data_file)
    bad_road.requests.clear()
    plans = make_plan(recipe, place)
    assert all(plan.artifact for plan in plans)
    asked = Counter("list" if "list-type" in path else path.rpartition("/")[2] for _, path in bad_road.requests)
    assert asked.keys() == {"list", "record.json"}  # the pool is local
    assert asked["list"] <= 2  # the root, and what earlier runs took
    assert asked["record.json"] == len(plans)


def test_reusing_a_stage_asks_for_its_parents_records_and_its_own(bad_road: Any, place: Place, data_file: Path) -> None:
    made = make_all(data_file, place)
    recipe = read_recipe(data_file)
    bad_road.requests.clear()
    run_stage("split", recipe.stages["split"], {"pairs": made["pairs"]}, place)
    reads = [(method, "list" if "list-type" in path else path.rpartition("/")[2]) for method, path in bad_road.requests]
    assert reads[:3] == [("GET", "record.json"), ("GET", "list"), ("GET", "record.json")]
    assert [method for method, _ in reads[3:]] == ["PUT"]  # the event that says so


def test_a_stage_that_storage_failed_goes_on_where_it_was(
    bad_road: Any, place: Place, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipelines.yaml_text import to_yaml

    ingest = {**small["stages"]["pairs"], "pairs_per_shard": 3}
    path = tmp_path / "shards.yaml"
    path.write_text(to_yaml({**small, "stages": {"pairs": ingest}}))
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "0.2")
    monkeypatch.setattr(s3, "_FIRST_WAIT_SECONDS", 0.02)
    bad_road.fault = lambda method, asked, number: "503" if "shards/00002" in asked or "503" in bad_road.faults else ""
    with pytest.raises(s3_error(), match=r"SlowDown after \d+ tries .* check that the server is up"):
        make_all(path, place)
    bad_road.fault = lambda method, asked, number: ""
    wait_for_lease(place)
    bad_road.requests.clear()
    made = make_all(path, place)
    written = sorted(asked for method, asked in bad_road.requests if method == "PUT" and "/shards/" in asked)
    assert [asked.rpartition("/")[2] for asked in written] == ["00002.tar", "00003.tar"]
    assert main(["verify", made["pairs"]]) == 0


def s3_error() -> type[Exception]:
    from data.errors import StorageError

    return StorageError


def wait_for_lease(place: Place) -> None:
    """Remove what could not be let go: this process is alive, so that a next run would first watch it for a while."""
    storage.remove(f"{place.root}/.partial/{next(iter(leases(place)))}")


def leases(place: Place) -> list[str]:
    return [name for name, _ in storage.list_files(f"{place.root}/.partial") if name.endswith(".lock")]


REFUSED = {
    "read only": ({"AWS_ACCESS_KEY_ID": "clipworks-reader"}, "s3://pairs/runs", "check permissions or credentials"),
    "wrong key": ({"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}, "s3://pairs/runs", "check permissions or credentials"),
    "no bucket": ({}, "s3://no-such-bucket/runs", "bucket"),
    "no server": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "s3://pairs/runs", "AWS_"),
    "no keys": (
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
         "AWS_CONFIG_FILE": "/dev/null"}, "s3://pairs/runs", "AWS_ACCESS_KEY_ID"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_place_that_refuses_is_one_line_with_the_fix(
    seaweed: Any,
    data_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    case: str,
    tmp_path: Path,
) -> None:
    variables, root, fix = REFUSED[case]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = refused("run", data_file, "--root", root, is_silent=case not in ("no bucket", "read only"))  # by writing
    assert root in said
    assert fix in said
    assert "a-wrong-secret" not in said
    assert seaweed.secret not in said
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(seaweed.secret.encode() not in path.read_bytes() for path in kept)


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "s3://pairs/none/recipe.yaml"),
        ("run", "s3://pairs/none/recipe.yaml"),
        ("recipe", "show", "s3://pairs/none/recipe.yaml"),
        ("plan", "quickstart", "--place", "s3://pairs/none/place.yaml"),
        ("verify", "s3://pairs/none"),
        ("search", "s3://pairs/none/pretrain", "red"),
        ("examples", "s3://pairs/none/evaluate", "a/b/c"),
        ("evaluate", "s3://pairs/none/pretrain", "--suite", "bundled"),
        ("evaluate", "ViT-B-32:s3://pairs/none/w.safetensors", "--suite", "bundled"),
        ("evaluate", "s3://pairs/none/pretrain", "--suite", "s3://pairs/none/suite.yaml"),
        ("suite", "show", "retrieval", "--data", "s3://pairs/none/sets"),
        ("suite", "show", "clip_benchmark", "--data", "s3://pairs/none/sets.txt"),
        ("ingest", "s3://pairs/none/pool.yaml"),
        ("ingest", "s3://pairs/none/tars", "--root", "s3://pairs/none/runs"),
        ("ingest", "s3://pairs/none/images", "--captions", "s3://pairs/none/c.csv", "--root", "s3://pairs/none/runs"),
    ],
)
def test_what_is_not_in_the_bucket_is_one_line_that_names_it(
    seaweed: Any, refused: Callable[..., str], words: tuple[str, ...]
) -> None:
    assert "s3://pairs/none" in refused(*words)


def test_a_password_in_an_address_is_refused_and_not_repeated(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "place.yaml"
    for field, address in (("llm_url", "http://me:hunter2@host/v1"), ("root", "s3://me:hunter2@bucket/runs")):
        path.write_text(f"{field}: {address}\n")
        said = refused("plan", "quickstart", "--place", path)
        assert field in said
        assert "hunter2" not in said
    with pytest.raises(RecipeError, match="url: holds a user and a password") as error:
        run_component(
            "ingest", "pairs", '{"kind": "ingest", "pool": {"source": "shards", "url": "https://a:hunter2@h/x"}}', "",
            "{}",
        )  # fmt: skip
    assert "hunter2" not in str(error.value)


def test_an_address_without_a_password_is_fine() -> None:
    assert Place(llm_url="http://host:8000/v1").llm_url
    assert Place(root="s3://bucket/a@b:c").root
