"""The one Ray of a run on this machine: started beside the first stages, joined by the training ones.

Run by `pipelines.here.child`; writes how to reach it as JSON, so that a stage that needs it can wait for the file. Ray
gives a node 30 s to come up, which a busy machine exceeds; so each attempt is a process of its own, whose end also ends
what it had started.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from components.runtime import end_with_parent
from data.output import tail_lines
from pipelines.here.workspace import RAY_LOGS

_ATTEMPTS = 8  # a machine that is busy now may not be in a minute, and no stage may need Ray before that
_DID_NOT_START = 75
_OBJECT_STORE_BYTES = 500_000_000
_SCRATCH = Path("/tmp")  # noqa: S108 - a short one: the path of a socket has at most 107 bytes


def main() -> None:
    """Start Ray, say where it is, and hold it until SIGTERM."""
    end_with_parent()
    answer, cpus, gpus = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _sweep()
    for attempt in range(_ATTEMPTS):
        process = os.fork()
        if not process:
            _serve(answer, cpus, gpus, is_last=attempt == _ATTEMPTS - 1)
        signal.signal(signal.SIGTERM, lambda *_, server=process: os.kill(server, signal.SIGTERM))
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != _DID_NOT_START:
            return


def _serve(answer: Path, cpus: int, gpus: int, is_last: bool) -> None:
    """One attempt; exits with 75 where Ray did not start."""
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = tempfile.mkdtemp(prefix=f"cw-{os.getpid()}-", dir=_SCRATCH)
    import ray

    try:
        found = _start(folder, cpus, gpus)
        if "error" not in found or is_last:
            _write(answer, found)
        while "error" not in found:
            signal.pause()
        sys.exit(_DID_NOT_START)
    finally:
        _keep_logs(Path(folder), answer.parent / RAY_LOGS)
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _keep_logs(folder: Path, kept: Path) -> None:
    """Keep the end of what each worker wrote: the page of a stage that was killed has nothing else to show."""
    for path in folder.glob("session_latest/logs/worker-*"):
        lines = tail_lines(path)
        if lines:
            kept.mkdir(exist_ok=True)
            (kept / path.name).write_text("\n".join(lines) + "\n")


def _start(folder: str, cpus: int, gpus: int) -> dict[str, str]:
    import ray

    try:
        context = ray.init(
            address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, log_to_driver=False,
            object_store_memory=_OBJECT_STORE_BYTES, _temp_dir=folder,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - handed to the stage that waits, which fails with it
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {"RAY_ADDRESS": str(context.address_info["address"]), "CLIPWORKS_RAY_STORAGE": f"{folder}/train"}


def _write(path: Path, answer: dict[str, str]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(answer))
    temporary.replace(path)


def _sweep() -> None:
    """Remove the folders of servers that were killed."""
    for folder in _SCRATCH.glob("cw-*-*"):
        owner = folder.name.split("-")[1]
        if folder.stat().st_uid == os.getuid() and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
