"""The `curate` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def curate(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Choose the pairs to train on: filters, duplicates, MetaCLIP's balancing; write which stay, and why."""
    from components.runtime import run_component

    return run_component("curate", name, config, parents, place, run)
