"""Small pools for curation tests: tars byte by byte, pictures that differ, and the whole chain as one call."""

import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.artifacts import Artifact
from data.curation.specs import (
    Balance,
    CaptionLength,
    CurateSpec,
    Decodable,
    DedupSpec,
    EntryFile,
    ExactImages,
    InspectSpec,
    MatchSpec,
    MetaFlag,
    NearCaptions,
    NearImages,
)
from data.place import Place
from data.specs import HoldoutFraction, IngestSpec, ShardPool, SplitSpec
from data.stage import StageSpec, run_stage

Members = Sequence[tuple[str, bytes]]
_NOUNS = ("dog", "cat", "red car", "house", "green tree", "old boat", "bird", "blue sky")


def picture(number: int, side: int = 24) -> bytes:
    """A PNG of 8 x 8 random greys, which no other number is near to."""
    greys = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(greys.repeat(side // 8, 0).repeat(side // 8, 1)).save(sink, "PNG")
    return sink.getvalue()


def pair(uid: str, image: bytes, caption: str | bytes | None, **meta: object) -> Members:
    """Members of one pair."""
    members = [(f"{uid}.png", image)]
    if caption is not None:
        members.append((f"{uid}.txt", caption.encode() if isinstance(caption, str) else caption))
    return [*members, (f"{uid}.json", json.dumps(meta).encode())]


def tar_of(*pairs: Members) -> bytes:
    """A tar of these members, in order."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in (member for members in pairs for member in members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def offset_of(tar: bytes, name: str) -> int:
    """Where a member's header begins."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getmember(name).offset


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def write_tars(folder: Path, tars: Mapping[str, bytes]) -> str:
    folder.mkdir(parents=True)
    for name, content in tars.items():
        (folder / f"{name}.tar").write_bytes(content)
    return str(folder)


def web_pairs(count: int, seed: int = 0) -> list[Members]:
    """Pairs of which some share a picture, some a caption, some are flagged, some are in German, some not matched."""
    draw, found = random.Random(seed), []
    for number in range(count):
        image = picture(draw.randrange(count * 5) if draw.random() < 0.8 else draw.randrange(6))
        caption = (
            f"A photo of a {draw.choice(_NOUNS)} and {draw.choice(_NOUNS)}, taken in {1900 + draw.randrange(120)}."
        )
        kind = draw.random()
        if kind < 0.1:
            caption = "Ein altes Haus am Rande des Waldes"
        elif kind < 0.15:
            caption = "zzzz qqqq"
        elif kind < 0.2:
            caption = "x"
        found.append(pair(f"pair{number:05d}", image, caption, flag="NSFW" if draw.random() < 0.1 else "UNLIKELY"))
    return found


def sharded(pairs: Sequence[Members], shards: int, seed: int | None = None) -> dict[str, bytes]:
    """Tars of these pairs, in another order for each seed."""
    order = list(pairs)
    if seed is not None:
        random.Random(seed).shuffle(order)
    return {f"s{seed}-{number}": tar_of(*order[number::shards]) for number in range(shards)}


def specs(pool: str, entries: str, t: int = 5, max_caption_bytes: int = 65_536) -> dict[str, StageSpec]:
    """The chain's stages in order; each is named as the references to it."""
    return {
        "pairs": IngestSpec(
            pool=ShardPool(url=pool), max_image_pixels=1_000_000, max_caption_bytes=max_caption_bytes
        ),
        "split": SplitSpec(pairs="pairs", holdouts={"test": HoldoutFraction(fraction=0.1)}),
        "inspection": InspectSpec(pairs="pairs", max_image_pixels=1_000_000),
        "matches": MatchSpec(pairs="pairs", split="split", metadata=(EntryFile(path=entries),)),
        "duplicates": DedupSpec(
            pairs="pairs", split="split", inspection="inspection",
            alike=(ExactImages(), NearImages(), NearCaptions(permutations=32)),
        ),
        "selection": CurateSpec(
            pairs="pairs", split="split", inspection="inspection", duplicates="duplicates",
            filters=(CaptionLength(min_words=2), Decodable(), MetaFlag(field="flag")),
            balance=Balance(matches="matches", t=t),
        ),
    }  # fmt: skip


def write_entries(folder: Path) -> str:
    path = folder / "entries.txt"
    path.write_text("\n".join((*_NOUNS, "photo", "photo of", "Haus", "1950")))
    return str(path)


def run(
    stages: Mapping[str, StageSpec], root: Path | str, workers: int = 0, made: Mapping[str, Artifact] | None = None
) -> dict[str, Artifact]:
    """Run stages in order, after those that were `made` before; artifact of each by name."""
    made = dict(made or {})
    for name, spec in stages.items():
        parents = {role: made[stage].uri for role, (stage, _) in spec.roles().items()}
        made[name] = run_stage(name, spec, parents, Place(root=str(root), data_workers=workers))
    return made


def contents(root: Path) -> dict[str, bytes]:
    """Every file of every artifact below a root, by name."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in files
        if path.relative_to(root).parts[0] not in (".events", ".partial")
    }
