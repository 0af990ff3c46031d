"""Runs a stage as a KubeRay RayJob and waits for it, from the KFP task's pod."""

from data.place import Place


def launch(kind: str, name: str, config: str, parents: str, place: Place, run: str) -> str:
    """Run the stage as a RayJob; return its artifact's URI.

    Raises:
        UserError: as the stage raised it; RuntimeError with the reason (pod, rank, last lines) otherwise.
    """
    raise NotImplementedError
