"""The `ingest` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def ingest(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Make a shard set from a pool of image-text pairs (packages, WebDataset shards, a folder with a caption file)."""
    from components.runtime import run_component

    return run_component("ingest", name, config, parents, place, run)
