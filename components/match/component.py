"""The `match` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def match(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Find each caption's metadata entries by MetaCLIP's substring rule; balancing reads the result."""
    from components.runtime import run_component

    return run_component("match", name, config, parents, place, run)
