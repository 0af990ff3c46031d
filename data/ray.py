"""Joining Ray: that of the run (RAY_ADDRESS), or one of this process."""

import os


def connect() -> None:
    """Join the run's Ray, or start one for this process."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False,
            configure_logging=False,
        )  # fmt: skip
