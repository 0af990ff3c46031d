"""What every component's body calls: strings in, one stage run, the URI of its artifact out.

The same call serves a pod, a step of the local runner and a notebook. What a run on this machine adds comes by
environment variables (`RUN_VARIABLES`); without them only tracking differs, which then happens in this process.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components import code
from components.failure import FAILURE_FILE, failure_of, leave
from data import storage
from data.curation.specs import CurateSpec, DedupSpec, InspectSpec, MatchSpec
from data.errors import BackendError, RecipeError
from data.place import Place
from data.specs import IngestSpec, RewriteSpec, SplitSpec
from data.stage import StageSpec, run_stage
from evaluation.specs import EvaluateSpec, ReportSpec
from training.specs import EmbedSpec, ModelSpec, TrainSpec

SPECS: dict[str, type[StageSpec]] = {
    "ingest": IngestSpec,
    "split": SplitSpec,
    "inspect": InspectSpec,
    "dedup": DedupSpec,
    "match": MatchSpec,
    "curate": CurateSpec,
    "rewrite": RewriteSpec,
    "model": ModelSpec,
    "train": TrainSpec,
    "embed": EmbedSpec,
    "evaluate": EvaluateSpec,
    "report": ReportSpec,
}
RAY_FILE = "CLIPWORKS_RAY_FILE"  # appears when the run's own Ray is up; a stage that needs Ray waits for it
TRACKED = "CLIPWORKS_TRACKED"  # set when another process follows the events, so that this one must not track
IN_RAYJOB = "CLIPWORKS_IN_RAYJOB"  # set inside a RayJob, where the stage itself is to run
RUN_VARIABLES = (FAILURE_FILE, RAY_FILE, TRACKED, IN_RAYJOB)
_RAY_KINDS = ("train",)
_PR_SET_PDEATHSIG = 1
_RAY_SECONDS = 300.0  # three attempts of 30 s and the imports between


def end_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process a signal when the thread that started it ends; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)


def run_component(kind: str, name: str, config: str, parents: str, place: str, run: str = "") -> str:
    """Run the stage, here or as a RayJob where the place says so, and return its artifact's URI.

    Args:
        kind: kind of stage.
        name: the stage's name in the recipe.
        config: JSON of the stage's spec.
        parents: lines `role=uri`.
        place: JSON of the place.
        run: the run's name, by which tracking groups its stages and a failure is found; empty outside a run.

    Raises:
        UserError: something the user can put right.
    """
    if FAILURE_FILE in os.environ:
        end_with_parent()
    where: Place | None = None
    storage.be_patient()
    try:
        where = _parsed(Place, place)
        if where.code and not code.is_active():
            task = {"kind": kind, "name": name, "config": config, "parents": parents, "place": place, "run": run}
            return code.run_with(where.code, task)
        spec = _parsed(SPECS[kind], config)
        if where.rayjob and needs_ray(kind, where) and IN_RAYJOB not in os.environ:
            from components.launcher import launch

            return launch(kind, name, config, parents, where, run)
        if needs_ray(kind, where) and RAY_FILE in os.environ:
            os.environ.update(wait_for_ray(Path(os.environ[RAY_FILE])))
        uris = parse_parents(parents)
        with _tracking(name, spec, uris, where, run):
            return run_stage(name, spec, uris, where).uri
    except code.Told:
        raise
    except BaseException as error:
        root = where.root if where else ""
        leave(failure_of(name, error, root), root, run if where else "")
        raise


def needs_ray(kind: str, place: Place) -> bool:
    """Whether a stage of this kind works on Ray there."""
    return place.ranks == "ray" if kind in _RAY_KINDS else place.data_workers > 0 and SPECS[kind].ON_RAY


def _parsed(spec: Any, text: str) -> Any:
    try:
        return spec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([spec.__name__, *map(str, first["loc"])])
        raise RecipeError(f"{where}: {first['msg']}; compile the pipeline again with this version") from error


def parse_parents(text: str) -> dict[str, str]:
    """Read lines `role=uri`."""
    pairs = [line.partition("=") for line in text.splitlines() if line.strip()]
    for role, sign, uri in pairs:
        if not (role and sign and uri):
            raise RecipeError(f"parents: {role + sign + uri!r}: write one line role=uri per parent")
    return {role.strip(): uri.strip() for role, _, uri in pairs}


def wait_for_ray(path: Path) -> dict[str, str]:
    """Wait until the run's own Ray is up and return the environment that reaches it."""
    deadline = time.monotonic() + _RAY_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise BackendError(
                f"ray: not up after {_RAY_SECONDS:.0f} s; see the log, or end other work on this machine"
            )
        time.sleep(0.1)
    answer: dict[str, str] = json.loads(path.read_text())
    if "error" in answer:
        raise BackendError(f"ray: did not start: {answer['error']}")
    return answer


@contextmanager
def _tracking(name: str, spec: StageSpec, uris: dict[str, str], place: Place, run: str) -> Iterator[None]:
    """Follow this stage's events into W&B from here, where nobody else does and a server is there to show them."""
    if place.wandb_mode != "online" or TRACKED in os.environ:
        yield
        return
    from training.tracking import track_stage

    with track_stage(name, spec, uris, place, run or "run"):
        yield
