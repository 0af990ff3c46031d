"""Joining Ray: that of the run (RAY_ADDRESS), or one of this process."""

import os
from typing import Any

from data.artifacts import CODE

CODE_FOLDER = "CLIPWORKS_CODE_FOLDER"  # code that this process uses in place of the installed one


def connect() -> None:
    """Join the run's Ray, or start one for this process."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False,
            configure_logging=False, runtime_env=_same_code(),
        )  # fmt: skip


def _same_code() -> dict[str, Any] | None:
    """Workers on other machines get the code that this process uses; Ray puts it first on their path."""
    folder = os.environ.get(CODE_FOLDER)
    return {"working_dir": folder, "env_vars": {CODE: os.environ[CODE]}} if folder else None
