"""The `model` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def model(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Make an initial checkpoint: an open_clip architecture, random or pretrained."""
    from components.runtime import run_component

    return run_component("model", name, config, parents, place, run)
