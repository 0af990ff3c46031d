"""The `split` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def split(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Give every pair one split, so that curation and training never see what evaluation reads."""
    from components.runtime import run_component

    return run_component("split", name, config, parents, place, run)
