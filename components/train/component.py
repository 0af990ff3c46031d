"""The `train` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def train(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Train on Ray Train: pretrain, post-train, upcycle or distil, as the phases say."""
    from components.runtime import run_component

    return run_component("train", name, config, parents, place, run)
