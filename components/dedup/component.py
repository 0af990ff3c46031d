"""The `dedup` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def dedup(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Group pairs that are alike, and name those that an evaluation holds too; `curate` keeps one of each group."""
    from components.runtime import run_component

    return run_component("dedup", name, config, parents, place, run)
