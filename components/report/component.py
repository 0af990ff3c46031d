"""The `report` stage as a KFP component: a thin face, strings in and a URI out. See README.md beside this file."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def report(name: str, config: str, parents: str, place: str, run: str) -> str:
    """Write one self-contained HTML page and `report.json` over everything a run made."""
    from components.runtime import run_component

    return run_component("report", name, config, parents, place, run)
