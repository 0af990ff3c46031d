"""Images per CPU-second of loaders that read the same tars: open_clip's own, torchvision v2's, and ours.

    python -m benchmarks.loader [--pairs 4096] [--turns 3] [--folder FOLDER]

JPEGs of 256 pixels become random resized crops of 224 (area 0.9 to 1, ratio 3/4 to 4/3), captions become token ids.
Every contender runs in a fresh process pinned to one core, with one worker process, over one epoch; the first batch is
warm-up. CPU time is that of the process and its worker. `ours, normalised` also turns pixels into floats on that core,
which training does on the device. All must have seen the same captions, or there is no result.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.pairs import open_shard_set, tars, write_pairs
from benchmarks.ratios import print_result, ratios, spread, take_turns

SIDE, BATCH, SCALE, RATIO = 224, 128, (0.9, 1.0), (3 / 4, 4 / 3)
MODEL = "ViT-B-32"
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]  # pictures (B, 3, SIDE, SIDE), token ids (B, 77)


def open_clip_batches(folder: str, pairs: int) -> Batches:
    """open_clip's WebDataset pipeline with its own transform and tokenizer."""
    import open_clip
    from open_clip_train import data as theirs

    # webdataset 1.0 marks the end of a tar with an empty sample, on which open_clip 3.3 fails with KeyError: 'fname'
    theirs.tar_file_expander = partial(theirs.tar_file_expander, eof_value=None)
    args = SimpleNamespace(
        train_data="::".join(tars(folder)), train_num_samples=pairs, train_data_upsampling_factors=None,
        dataset_resampled=False, batch_size=BATCH, workers=1, world_size=1, seed=0,
    )  # fmt: skip
    transform = open_clip.image_transform(SIDE, is_train=True, aug_cfg={"scale": SCALE})
    data = theirs.get_wds_dataset(args, transform, is_train=True, tokenizer=open_clip.get_tokenizer(MODEL))
    return iter(data.dataloader)


class TorchvisionPairs(torch.utils.data.Dataset):  # type: ignore[misc]
    """Map-style pairs: torchvision's own JPEG decoder and v2 transforms, pictures read by offset."""

    def __init__(self, folder: str) -> None:
        import open_clip
        from torchvision.transforms import v2

        store = _store(folder)
        rows = np.arange(len(store))
        self.places = store.ranges(rows)
        self.captions = store.captions_of("alt", rows)
        self.files = [os.open(path, os.O_RDONLY) for path in tars(folder)]
        self.tokenizer = open_clip.get_tokenizer(MODEL)
        self.transform = v2.Compose([
            v2.RandomResizedCrop(SIDE, SCALE, RATIO, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg

        place = self.places[number]
        content = bytearray(os.pread(self.files[place.shard], place.bytes, place.offset))
        picture = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.RGB)
        return self.transform(picture), self.tokenizer([self.captions[number]])[0]


def torchvision_batches(folder: str, _pairs: int) -> Batches:
    """torch's DataLoader over torchvision v2."""
    dataset = TorchvisionPairs(folder)
    return iter(torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=1, drop_last=True))


def our_batches(folder: str, pairs: int, decode: str = "fast", normalise: bool = False) -> Batches:
    """Our loader: pixels stay uint8 until the device, unless `normalise`."""
    import open_clip

    from training.loading import DataView, batches
    from training.order import UniformOrder
    from training.specs import Augment, View
    from training.towers import Towers

    store = _store(folder)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    towers = Towers(torch.nn.Module(), {"preprocess_cfg": {"mean": mean, "std": std}})
    towers.model.visual = SimpleNamespace(image_size=SIDE)
    towers.tokenizer = open_clip.get_tokenizer(MODEL)
    view = View(augment=Augment(crop_scale=SCALE, crop_ratio=RATIO), decode=decode)
    data = DataView(store, towers, view, UniformOrder(len(store), 0), 0, BATCH)
    for batch in batches(data, range(pairs // BATCH), workers=1, stall_seconds=60):
        yield towers.normalise(batch.image) if normalise else batch.image, batch.texts["text"]


def _store(folder: str) -> Any:
    from training.pairs import PairStore

    shard_set = open_shard_set(folder)
    return PairStore(shard_set, shard_set.index()["uid"].combine_chunks())


CONTENDERS: dict[str, Callable[[str, int], Batches]] = {
    "open_clip": open_clip_batches,
    "torchvision v2": torchvision_batches,
    "ours": our_batches,
    "ours, normalised": lambda folder, pairs: our_batches(folder, pairs, normalise=True),
    "ours, exact": lambda folder, pairs: our_batches(folder, pairs, decode="exact"),
}


def cpu_seconds() -> float:
    """CPU time of this process and of its living children."""
    tick = os.sysconf("SC_CLK_TCK")
    stats = (Path(f"/proc/{child.pid}/stat").read_text() for child in multiprocessing.active_children())
    return (
        time.process_time() + sum(sum(int(t) for t in stat.rsplit(")", 1)[1].split()[11:13]) for stat in stats) / tick
    )


def measure(name: str, folder: str, pairs: int) -> dict[str, float | str]:
    """One epoch of one contender in this process."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    loader = CONTENDERS[name](folder, pairs)
    seen = [next(loader)[1]]
    cpu, wall = cpu_seconds(), time.perf_counter()
    for number in range(pairs // BATCH - 1):
        image, text = next(loader)
        assert image.shape == (BATCH, 3, SIDE, SIDE), image.shape
        seen.append(text)
        if number == pairs // BATCH - 2:
            cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    rows = sorted(row.tobytes() for row in torch.cat(seen).numpy())
    images = pairs - BATCH
    return {"cpu": images / cpu, "wall": images / wall, "seen": hashlib.sha256(b"".join(rows)).hexdigest()}


def main() -> None:
    """Interleaved turns of all contenders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4096, help=f"a multiple of {BATCH}")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", help="made by benchmarks.pairs with as many pairs; default: a temporary one")
    parser.add_argument("--contender", choices=CONTENDERS, help="measure only this one, in this process")
    options = parser.parse_args()
    assert options.pairs % BATCH == 0, f"--pairs {options.pairs} is no multiple of {BATCH}"
    if options.contender:
        print(json.dumps(measure(options.contender, options.folder, options.pairs)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        if not options.folder:
            write_pairs(folder, options.pairs)
        report(folder, options.pairs, options.turns)


def report(folder: str, pairs: int, turns: int) -> None:
    """Run and print; images per second of wall clock come second."""
    wall: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    seen: set[str] = set()

    def turn(name: str) -> float:
        command = [sys.executable, "-m", "benchmarks.loader", "--contender", name, "--folder", folder]
        found = json.loads(subprocess.check_output([*command, "--pairs", str(pairs)], text=True).splitlines()[-1])
        wall[name].append(found["wall"])
        seen.add(found["seen"])
        return float(found["cpu"])

    cpu = take_turns({name: lambda name=name: turn(name) for name in CONTENDERS}, turns, warmup=0)
    assert len(seen) == 1, "the contenders have not seen the same captions"
    print_result(cpu, "ours", "open_clip", "images per CPU-second", "at least 4")
    for name in ("torchvision v2", "ours, normalised", "ours, exact"):
        print(f"  {name} / open_clip: {spread(ratios(cpu[name], cpu['open_clip']))}")
    for name, values in wall.items():
        print(f"  {name:<28} {spread(values)} images per second of wall clock, one core")


if __name__ == "__main__":
    main()
