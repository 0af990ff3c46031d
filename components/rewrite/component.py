"""The `rewrite` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def rewrite(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Rewrite each distinct caption in context (LaCLIP) into a caption layer; what fails its check is not used."""
    from components.runtime import run_component

    return run_component("rewrite", name, config, parents, place, run)
