"""The `embed` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def embed(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Embed pairs, captions, class prompts and queries with a checkpoint, once for everybody who reads features."""
    from components.runtime import run_component

    return run_component("embed", name, config, parents, place, run)
