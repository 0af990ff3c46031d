"""What making an artifact took: kept beside its events, for estimates; never in its record, which holds no time."""

import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from data import storage
from data.events import read_events
from data.place import Place, usable_cpus
from data.spec import Spec

SUFFIX = ".timing.json"


class Measurement(Spec):
    """One making of one artifact. All but `seconds` may be missing, as in files of earlier versions."""

    model_config = ConfigDict(extra="ignore")

    seconds: float = Field(ge=0)
    start_seconds: float | None = Field(
        default=None, description="until its first sign of progress: more pairs add none"
    )
    stage: str | None = None
    kind: str | None = None
    fingerprint: str | None = None
    config: str | None = Field(default=None, description="digest of the settings that count")
    parents: dict[str, str] = Field(default_factory=dict, description="role -> fingerprint")
    ended: float = Field(default=0.0, description="seconds since 1970")
    is_whole: bool = Field(default=True, description="False: it went on where an ended process had stopped")
    pairs: int | None = Field(default=None, description="that it went through; 0: its time does not depend on pairs")
    flops: float | None = Field(default=None, description="model FLOPs of all pairs, where they are counted")
    workers: int = Field(default=1, ge=1)
    cpus: float | None = Field(default=None, description="of all workers")
    gpus: int = Field(default=0, ge=0, description="of all workers")
    device: str | None = Field(default=None, description="model of the GPU, or of the CPU where there was none")
    bytes_written: int | None = None


def measurement_uri(root: str, artifact_name: str) -> str:
    """Where the measurement of an artifact lies."""
    return storage.join(storage.normalise(root), ".events", artifact_name + SUFFIX)


def read_measurement(uri: str) -> Measurement | None:
    """Read one; None for a file that is none."""
    try:
        return Measurement.model_validate_json(storage.read_bytes(uri))
    except ValidationError:
        return None


def resources_of(place: Place, on_ray: bool) -> dict[str, Any]:
    """What a stage has that asks for nothing of its own: Ray's tasks of one CPU, or this process."""
    if on_ray and place.data_workers:
        return {"workers": place.data_workers, "cpus": float(place.data_workers), "gpus": 0, "device": cpu_model()}
    return {"workers": 1, "cpus": float(usable_cpus()), "gpus": 0, "device": cpu_model()}


def seconds_to_progress(events_uri: str, started: float) -> float | None:
    """Seconds from the start to the first progress that the stage reported; None if it reported none."""
    since = round(started, 3)  # events give their time in milliseconds
    first = (event["time"] for event in read_events(events_uri) if event["event"] == "progress")
    return next((max(0.0, round(time - started, 2)) for time in first if time >= since), None)


def folder_bytes(uri: str) -> int:
    """Bytes of all files below an artifact."""
    return sum(size for _, size in storage.list_files(uri, recursive=True))


@cache
def cpu_model(proc: Path = Path("/proc")) -> str:
    """The processor's name, e.g. `AMD EPYC 7763 64-Core Processor`."""
    path = proc / "cpuinfo"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    names: Mapping[str, str] = {
        key.strip(): value.strip() for key, sign, value in (line.partition(":") for line in lines) if sign
    }
    return names.get("model name") or platform.processor() or platform.machine() or "CPU"
