"""The `evaluate` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def evaluate(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Score a feature set on held-out splits: zero-shot and retrieval, with bootstrap intervals and chance."""
    from components.runtime import run_component

    return run_component("evaluate", name, config, parents, place, run)
