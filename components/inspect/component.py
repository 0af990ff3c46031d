"""The `inspect` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def inspect(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Look at every picture and caption once: checksum, size, perceptual hash, sharpness, entropy, language."""
    from components.runtime import run_component

    return run_component("inspect", name, config, parents, place, run)
