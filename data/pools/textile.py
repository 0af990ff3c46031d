"""Simulated textile photographs, even and defective, that package conformal-clip-data ships for quality control.

Nominal weaves are drawn from one spatial autoregressive model; a global defect shrinks both of its parameters by 5 %
(finer, less streaked everywhere), a local defect is a small speckled spot in a nominal weave (Megahed et al. 2025,
arXiv 2501.12596; Bui and Apley 2020, spc4sts).
"""

from pathlib import Path
from typing import NamedTuple

from data import storage
from data.errors import BackendError
from data.pools import Dropped, Plan, Planned
from data.pools.package import folder_of, version_of
from data.shards import IMAGE_EXTENSIONS
from data.sources import extension_of
from data.specs import TextilePool

PACKAGE, MODULE = "conformal-clip-data", "conformal_clip_data"


class Kind(NamedTuple):
    """A kind of textile: its class and how it looks."""

    name: str
    caption: str


KINDS = {
    "nominal": Kind("nominal", "a textile with an even weave and no defect"),
    "global": Kind("global defect", "a textile with a global defect: its weave is too fine and less streaked all over"),
    "local": Kind("local defect", "a textile with a local defect: a small speckled spot in an even weave"),
}


def package_versions() -> dict[str, str]:
    """Version of the package that ships the photographs.

    Raises:
        BackendError: it is not installed.
    """
    return {PACKAGE: version_of(PACKAGE, "textile")}


def plan(_pool: TextilePool) -> Plan:
    """Plan every photograph of the three kinds."""
    versions = package_versions()
    root = folder_of(MODULE, "data", "textile_images", "simulated")
    pairs: list[Planned] = []
    dropped: list[Dropped] = []
    for folder, kind in KINDS.items():
        if not (root / folder).is_dir():
            raise BackendError(f"package {PACKAGE} {versions[PACKAGE]} has no folder {folder!r}; install version 0.1.4")
        for path in sorted((root / folder).iterdir()):
            if extension_of(path.name) in IMAGE_EXTENSIONS:
                pairs.append(_planned(folder, kind, path))
            else:
                dropped.append(Dropped("", f"{folder}/{path.name}", "unsupported_format"))
    card = {
        "title": "Simulated textile photographs for quality control (Megahed et al. 2025, arXiv 2501.12596)",
        "packages": versions,
        "classes": [kind.name for kind in KINDS.values()],
        "licence": "MIT",
    }
    return Plan(pairs, dropped, card)


def _planned(folder: str, kind: Kind, path: Path) -> Planned:
    number = path.stem.removeprefix("textile_")
    return Planned(
        f"textile-{folder}-{number}", storage.normalise(path), extension_of(path.name), f"{folder}/{path.name}",
        {"alt": kind.caption}, {"class": kind.name, "licence": "MIT"},
    )  # fmt: skip
