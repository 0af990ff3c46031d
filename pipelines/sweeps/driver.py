"""The process that drives a sweep: Ray, Ray Tune and the tracker, in a process group that ends as one.

Run by `pipelines.sweeps.running`; what happens is appended to the sweep's events, which that command reads.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.runtime import wait_for_ray
from data import storage
from data.errors import UserError
from data.events import Events
from data.place import Place
from data.ray import connect
from pipelines.here.beside import beside, followed_by, lead_group
from pipelines.sweeps.spec import Sweep
from pipelines.sweeps.study import make_study
from pipelines.sweeps.trial import concurrent_trials
from pipelines.sweeps.tuning import Tuning, set_tune_environment, tune_study

_END_SECONDS = 60.0
SAID = "error: "


def main() -> None:
    """Drive the sweep in the file that is the only argument; what the user can put right is the last line said."""
    try:
        _drive()
    except UserError as error:
        sys.stderr.write(f"{SAID}{error}\n")
        sys.exit(error.exit_code)


def _drive() -> None:
    lead_group()
    storage.be_patient()
    import ray

    job = json.loads(Path(sys.argv[1]).read_text())
    place, study = Place.model_validate(job["place"]), make_study(Sweep.model_validate(job["sweep"]))
    tuning = Tuning(study, job["name"], job["shared"], place, job["tune"])
    set_tune_environment()
    with _tracker(place, sys.argv[1]), _ray(job, study.sweep, place) as is_own:
        connect()
        try:
            tune_study(tuning, Events(job["events"], job["name"]), is_own)
        finally:
            ray.shutdown()  # before its server ends: who is still joined then dies of it


@contextmanager
def _ray(job: dict[str, Any], sweep: Sweep, place: Place) -> Iterator[bool]:
    """Where RAY_ADDRESS leads, or a Ray with room for this sweep's concurrent trials; yields whether it is ours."""
    if "RAY_ADDRESS" in os.environ:
        yield False
        return
    share, trials = sweep.share(place), concurrent_trials(sweep, place)
    room = [str(trials * share.cpus), str(trials * share.gpus)]
    with beside("pipelines.here.ray_server", job["ray"], *room, end_seconds=_END_SECONDS) as server:
        try:
            os.environ.update(wait_for_ray(Path(job["ray"])))
            yield True
        finally:
            server.terminate()


@contextmanager
def _tracker(place: Place, job: str) -> Iterator[None]:
    """W&B, following the sweep's events from a process of its own; it ends after its input is closed."""
    if place.wandb_mode == "disabled":
        yield
        return
    with followed_by("pipelines.sweeps.tracking", job, _END_SECONDS):
        yield


if __name__ == "__main__":
    main()
