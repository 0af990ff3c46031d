"""Commands about pairs: ingest, verify, why, search."""

import argparse
import sys
from typing import Any

from pydantic import ValidationError

from data.errors import RecipeError
from data.specs import FolderPool, IngestSpec, ShardPool
from pipelines.commands.options import Add, make_console, parse_place, read_text
from pipelines.explain import explain
from pipelines.yaml_text import parse_yaml

_FROM_YAML = (".yaml", ".yml", ".json")


def add_commands(add: Add) -> None:
    """Commands about pairs."""
    ingest_parser = add("ingest", help="make a shard set from pictures and captions, or from WebDataset tars")
    ingest_parser.add_argument(
        "source", help="folder or URL of .tar files, folder of pictures, or a .yaml file with a pool"
    )
    ingest_parser.add_argument(
        "--captions", metavar="FILE", help=".csv, .tsv, .parquet or .jsonl file, for a folder of pictures"
    )
    ingest_parser.add_argument(
        "--image-column", default="image", help="column with the picture's path (default: image)"
    )
    ingest_parser.add_argument("--caption-column", default="caption", help="column with the caption (default: caption)")
    ingest_parser.add_argument("--uid-column", help="column with a stable id; default: a hash of the picture's path")
    ingest_parser.add_argument("--pairs-per-shard", type=int, default=4096, help="default: 4096")
    ingest_parser.add_argument("--root", default="runs", help="folder or s3:// prefix of all artifacts (default: runs)")
    ingest_parser.add_argument("--name", default="pairs", help="what the artifact is called before its fingerprint")
    ingest_parser.set_defaults(do=ingest)
    verify_parser = add(
        "verify", help="check a shard set or a folder of tars byte for byte; exit 1 if something is wrong"
    )
    verify_parser.add_argument("folder", help="a shard set, or a folder of .tar files")
    verify_parser.add_argument("--most", type=int, default=20, help="list at most so many problems (default: 20)")
    verify_parser.set_defaults(do=verify)
    why_parser = add("why", help="say why a pair was kept or dropped, and what was trained on it")
    why_parser.add_argument("uid", help="the pair's uid")
    why_parser.add_argument("--run", help="look only at the artifacts of this run")
    why_parser.add_argument("--selection", metavar="FOLDER", help="explain by this selection only")
    why_parser.add_argument("--root", default="runs", help="folder or s3:// prefix of all artifacts (default: runs)")
    why_parser.add_argument("--json", action="store_true", help="print JSON")
    why_parser.set_defaults(do=why)
    search_parser = add("search", help="find the pictures that fit a text best, with a trained checkpoint")
    search_parser.add_argument("checkpoint", help="folder of a checkpoint artifact")
    search_parser.add_argument("query", nargs="+", help="text to search for")
    search_parser.add_argument("--top", type=int, default=12, help="how many pictures (default: 12)")
    search_parser.add_argument(
        "-o", "--output", metavar="FILE", default="search.png", help="contact sheet (default: search.png)"
    )
    search_parser.set_defaults(do=search)


def why(options: argparse.Namespace) -> int:
    """Say what was decided about a pair."""
    from pipelines.why import as_text, explain, print_explanation

    found = explain(options.root, options.uid, options.run, options.selection)
    if options.json:
        sys.stdout.write(as_text(found))
    else:
        print_explanation(found, sys.stdout.write, make_console().width)
    return 0


def ingest(options: argparse.Namespace) -> int:
    """Make a shard set without a pipeline."""
    spec, place = _ingest_spec(options), parse_place({"root": options.root}, "--root")
    from pipelines.here.alone import run_alone

    run_alone(options.name, spec, place, make_console())
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check a shard set."""
    from data.verify import verify as verify_shards

    report = verify_shards(options.folder)
    sys.stdout.write(", ".join(f"{count:,} {what}" for what, count in report.counts.items()) + "\n")
    for problem in report.problems[: options.most]:
        sys.stdout.write(f"{problem.shard}  {problem.member or '-'}  {problem.reason}\n")
    if len(report.problems) > options.most:
        sys.stdout.write(f"... and {len(report.problems) - options.most} more; list them with --most\n")
    return 0 if report.ok else 1


def search(options: argparse.Namespace) -> int:
    """Find pictures by text."""
    from evaluation.search import search as search_pictures

    found = search_pictures(options.checkpoint, " ".join(options.query), top=options.top, sheet=options.output)
    for hit in found:
        sys.stdout.write(f"{hit.similarity:.3f}  {hit.uid}  {hit.caption}\n")
    sys.stdout.write(f"{options.output}\n")
    return 0


def _ingest_spec(options: argparse.Namespace) -> IngestSpec:
    """Tars, pictures with a caption file, or a pool written down in YAML."""
    value: dict[str, Any] = {"pairs_per_shard": options.pairs_per_shard}
    if options.source.endswith(_FROM_YAML):
        value["pool"] = parse_yaml(read_text(options.source), options.source)
    elif options.captions:
        columns = {name: getattr(options, name) for name in ("image_column", "caption_column", "uid_column")}
        value["pool"] = FolderPool(images=options.source, captions=options.captions, **columns).model_dump()
    else:
        value["pool"] = ShardPool(url=options.source).model_dump()
    try:
        return IngestSpec.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{options.source}: {explain(error, IngestSpec, value)}") from error
