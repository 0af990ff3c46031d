"""Why a pair was kept or dropped, on a root whose artifacts were written by hand."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data import storage
from data.artifacts import Artifact, Output, Record, fingerprint
from data.curation import tables
from data.curation.explanation import DROPPED, KEPT, OUTSIDE, Entry, Likeness
from data.curation.plain import as_json, one_line
from data.curation.specs import AspectRatio, CaptionLength, ClipScore, CurateSpec
from data.curation.why import explain_pair
from data.errors import ArtifactError, RecipeError, ShardError
from data.features import write_features
from data.selection import SPLIT_SCHEMA
from data.shards import CAPTION_SCHEMA, Pair, write_manifest, write_parquet, write_shard
from pipelines.runs import RunRecord, StageOfRun, write_run
from pipelines.why import as_text, explain, print_explanation

CAPTIONS = {
    "cat-1": "a cat", "cat-2": "a cat again", "dog-1": "a dog and a cat", "eval-1": "held out", "long-1": "x " * 40,
    "mute-1": "", "near-1": "a near copy", "bad-1": "a \x1b[31mred\u202e dog\nin two lines",
}  # fmt: skip
# uid -> kept, p_keep, draw, reason
FATES = {
    "cat-1": (True, 0.25, 0.125, ""),
    "cat-2": (False, 0.0, 0.5, "duplicate"),
    "dog-1": (False, 0.75, 0.875, "drawn_out"),
    "long-1": (False, 0.0, 0.5, "caption_length"),
    "mute-1": (False, 0.0, 0.5, "no_caption"),
    "near-1": (False, 0.0, 0.5, "protected"),
    "bad-1": (False, 0.0, 0.5, "unmatched"),
}
SHARDS = {"00000": ["cat-1", "dog-1", "eval-1", "mute-1"], "00001": ["cat-2", "long-1", "near-1", "bad-1"]}
FILTERS = (CaptionLength(max_words=20), AspectRatio(max_ratio=2.5), ClipScore(min_cosine=0.5))


class Root:
    """Artifacts below one folder, each written by a function."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)

    def put(self, name, kind, parents, write=lambda uri: None, config=None, counts=None, revision=None) -> Artifact:
        prints = {role: parent.fingerprint for role, parent in parents.items()}
        config, revision = config or {}, revision or (CurateSpec.REVISION if kind == "selection" else 1)
        print_ = fingerprint(name, revision, config, prints)
        out = Output(self.uri, name, print_)
        write(out.uri)
        record = Record(
            kind=kind, stage=name, revision=revision, fingerprint=print_, config=config, parents=prints,
            counts=counts or {},
        )  # fmt: skip
        return out.commit(record)


def per_shard(folder: str, schema: pa.Schema, row_of):
    """A writer of one file a shard with the rows that `row_of` has."""

    def write(uri: str) -> None:
        for shard, uids in SHARDS.items():
            rows = [{"uid": uid, **row} for uid in uids if (row := row_of(uid)) is not None]
            write_parquet(storage.join(uri, folder, f"{shard}.parquet"), pa.Table.from_pylist(rows, schema))

    return write


def picture(width: int, height: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(sink, "PNG")
    return sink.getvalue()


def write_pairs(uri: str) -> None:
    shards = [
        write_shard(
            uri, name,
            [Pair(uid, picture(40, 20), "png", {"alt": CAPTIONS[uid]} if CAPTIONS[uid] else {}, {"vendor": "Goog"})
             for uid in uids],
        ) for name, uids in SHARDS.items()
    ]  # fmt: skip
    write_manifest(uri, shards, [{"shard": "00001", "member": "torn-1.jpg", "reason": "unreadable"}])


def split_of(uid: str) -> dict[str, str]:
    return {"split": "test" if uid == "eval-1" else "train"}


def write_duplicates(uri: str) -> None:
    groups = [{"uid": uid, "group": "cat-1", "by": ["exact", "near_image"]} for uid in ("cat-1", "cat-2")]
    write_parquet(storage.join(uri, "groups.parquet"), pa.Table.from_pylist(groups, tables.GROUP_SCHEMA))
    like = {"evaluation": "test", "evaluation_uid": "eval-1", "by": "near_image", "distance": 2}
    write_parquet(
        storage.join(uri, "protected.parquet"),
        pa.Table.from_pylist([{"uid": "near-1", **like}], tables.PROTECTED_SCHEMA),
    )


ENTRIES = [
    {"id": 0, "entry": "cat", "source": "wordnet", "language": "en", "count": 80, "kept": 19, "p": 0.25},
    {"id": 1, "entry": "dog", "source": "file", "language": "en", "count": 30, "kept": 20, "p": 0.6666},
    {"id": 2, "entry": "cow", "source": "file", "language": "en", "count": 0, "kept": 0, "p": 1.0},
]
MATCHED = {"cat-1": [0], "cat-2": [0], "dog-1": [0, 1]}


def write_selection(uri: str) -> None:
    fates = {uid: dict(zip(("kept", "p_keep", "draw", "reason"), fate, strict=True)) for uid, fate in FATES.items()}
    per_shard("selection", tables.SELECTION_SCHEMA, fates.get)(uri)
    write_parquet(storage.join(uri, "entries.parquet"), pa.Table.from_pylist(ENTRIES, tables.ENTRY_SCHEMA))


def inspected(uid: str) -> dict:
    size = {"width": 60, "height": 20} if uid == "dog-1" else {"width": 40, "height": 20}
    return {"problem": "", "content": b"0" * 16, "phash": 1, "entropy": 0.5, "sharpness": 3.0, "language": "en",
            "language_score": 0.75, **size}  # fmt: skip


def write_layer(uri: str) -> None:
    rows = [{"uid": "cat-1", "source": "rewrite", "caption": "one small cat", "provenance": "{}"}]
    write_parquet(storage.join(uri, "captions", "00000.parquet"), pa.Table.from_pylist(rows, CAPTION_SCHEMA))


def vectors(*angles: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    root = Root(tmp_path_factory.mktemp("root"))
    pairs = root.put("pairs", "shard_set", {}, write_pairs)
    split = root.put("split", "split", {"pairs": pairs}, per_shard("split", SPLIT_SCHEMA, split_of))
    inspection = root.put(
        "inspect", "inspection", {"pairs": pairs}, per_shard("inspection", tables.INSPECTION_SCHEMA, inspected)
    )
    matches = root.put(
        "match", "matches", {"pairs": pairs, "split": split},
        per_shard("matches", tables.MATCHES_SCHEMA, lambda uid: FATES.get(uid) and {"entries": MATCHED.get(uid, [])}),
    )  # fmt: skip
    duplicates = root.put("dedup", "duplicates", {"pairs": pairs, "split": split}, write_duplicates)
    start = root.put("start", "checkpoint", {})
    features = root.put(
        "embed", "feature_set", {"checkpoint": start, "pairs": pairs},
        lambda uri: write_features(uri, ["cat-1"], vectors(0), ["a cat"], vectors(np.pi / 3)),
    )  # fmt: skip
    spec = CurateSpec(pairs="pairs", split="split", filters=FILTERS, balance={"matches": "match", "t": 20})
    parents = {"pairs": pairs, "split": split, "inspection": inspection, "features": features,
               "duplicates": duplicates, "balance.matches": matches}  # fmt: skip
    selection = root.put("curate", "selection", parents, write_selection, spec.resolved())
    layer = root.put("rewrite", "caption_layer", {"pairs": pairs, "selection": selection}, write_layer)
    phases = {
        "phases": {
            "a": {"samples_seen": 640, "global_batch_size": 64},
            "b": {"samples_seen": 64, "global_batch_size": 32},
        }
    }
    common = {"init": start, "pairs": pairs, "selection": selection}
    trained = root.put("pretrain", "checkpoint", common, config=phases, counts={"samples_seen": 704})
    plain = CurateSpec(pairs="pairs", split="split")
    other = root.put("everything", "selection", {"pairs": pairs, "split": split}, write_selection, plain.resolved())
    root.put("tuned", "checkpoint", {"init": trained, "pairs": pairs, "selection": other})
    root.put("layered", "checkpoint", {"init": start, "pairs": pairs, "selection": other, "caption_layers.0": layer})
    root.put("stranger", "checkpoint", {"init": start})
    names = [name for name in storage.list_folders(root.uri) if not name.startswith(("everything", "."))]
    stages = {name[:-13]: StageOfRun(fingerprint=None, artifact=name, reused=False) for name in names}
    write_run(root.uri, RunRecord(name="monday", state="finished", started=0, command=(), recipe={}, place={},
                                  stages=stages, versions={}))  # fmt: skip
    return root


def decision_on(root: Root, uid: str, name: str = "curate"):
    return next(d for d in explain_pair(root.uri, uid).selections if d.selection.startswith(name))


def shown(root: Root, uid: str, width: int = 200) -> str:
    lines: list[str] = []
    print_explanation(explain_pair(root.uri, uid), lines.append, width)
    assert all(line.endswith("\n") and len(line) <= width + 1 for line in lines)
    return "".join(lines)


def test_where_a_pair_lies_is_what_the_tar_holds(root) -> None:
    (place,) = explain_pair(root.uri, "long-1").places
    content = Path(place.url).read_bytes()[place.offset : place.offset + place.bytes]
    assert content == picture(40, 20)
    assert (place.shard, place.row, place.ext, place.picture["width"]) == ("00001", 1, "png", 40)
    assert list(place.splits.values()) == ["train"]
    assert place.meta == {"vendor": "Goog"}


def test_captions_come_with_their_source_and_layer(root) -> None:
    (place,) = explain_pair(root.uri, "cat-1").places
    told = [(c.source, c.caption, re.sub("-[0-9a-f]{12}$", "", c.artifact)) for c in place.captions]
    assert told == [("alt", "a cat", "pairs"), ("rewrite", "one small cat", "rewrite")]
    (quiet,) = explain_pair(root.uri, "mute-1").places
    assert quiet.captions == ()


@pytest.mark.parametrize("uid", sorted(FATES))
def test_verdict_and_draw_are_those_of_the_selection(root, uid) -> None:
    kept, p_keep, draw, reason = FATES[uid]
    decision = decision_on(root, uid)
    assert (decision.verdict, decision.reason) == (KEPT if kept else DROPPED, reason)
    assert (decision.p_keep, decision.draw) == (p_keep, draw)


def test_a_pair_of_another_split_is_outside(root) -> None:
    decision = decision_on(root, "eval-1")
    assert (decision.verdict, decision.split, decision.splits) == (OUTSIDE, "test", ("train",))
    assert "not considered: it is in split test, the selection takes train" in shown(root, "eval-1")


def test_filters_say_what_they_found_and_where_the_bounds_are(root) -> None:
    length, ratio, score = decision_on(root, "cat-1").filters
    assert (length.filter, length.passes, length.bounds["max_words"]) == ("caption_length", True, 20)
    assert (ratio.passes, ratio.value, ratio.bounds) == (True, 2.0, {"max_ratio": 2.5})
    assert score.passes
    assert score.value == pytest.approx(0.5, abs=1e-6)  # cosine of 60 degrees
    assert not decision_on(root, "dog-1").filters[1].passes  # 60 x 20 is 3.0
    assert decision_on(root, "dog-1").filters[2].value is None  # not embedded
    assert not decision_on(root, "long-1").filters[0].passes
    assert re.search(r"DROP +caption_length", shown(root, "long-1"))
    assert decision_on(root, "cat-1", "everything").filters == ()


def test_a_duplicate_names_the_pair_that_stays(root) -> None:
    group = decision_on(root, "cat-2").duplicates
    assert (group.size, group.by, group.stays) == (2, ("exact", "near_image"), "cat-1")
    assert [(m.uid, m.reason) for m in group.members] == [("cat-1", ""), ("cat-2", "duplicate")]
    assert "dropped, a duplicate of cat-1" in shown(root, "cat-2")
    assert decision_on(root, "dog-1").duplicates is None


def test_a_protected_pair_names_the_evaluation(root) -> None:
    assert decision_on(root, "near-1").protected == (Likeness("test", "eval-1", "near_image", 2),)
    assert "test evaluates a picture like it" in shown(root, "near-1")
    assert decision_on(root, "cat-1").protected == ()


def test_entries_come_with_counts_and_probabilities(root) -> None:
    dog, cat = decision_on(root, "dog-1").entries
    assert dog == Entry("dog", "file", "en", 30, 20, 0.6666)
    assert (cat.entry, cat.pairs, cat.kept) == ("cat", 80, 19)
    assert decision_on(root, "bad-1").entries == ()
    assert "dropped, draw 0.875 is not below p_keep 0.75" in shown(root, "dog-1")
    assert not decision_on(root, "dog-1", "everything").balanced


def test_checkpoints_say_how_they_go_back_to_the_selection(root) -> None:
    uses = {re.sub("-[0-9a-f]{12}$", "", u.checkpoint): u for u in decision_on(root, "cat-1").checkpoints}
    assert {name: use.how for name, use in uses.items()} == {
        "pretrain": "trained", "tuned": "initialised", "layered": "derived",
    }  # fmt: skip
    assert (uses["pretrain"].samples_seen, uses["pretrain"].steps) == (704, 12)
    assert {name for name, use in uses.items() if use.saw_pair} == {"pretrain", "tuned"}
    assert not any(use.saw_pair for use in decision_on(root, "dog-1").checkpoints)
    assert "trained on this selection, which leaves it out" in shown(root, "dog-1")


def test_one_selection_can_be_named_and_must_be_below_the_root(root, tmp_path) -> None:
    uri = next(storage.join(root.uri, n) for n in storage.list_folders(root.uri) if n.startswith("everything"))
    assert [d.selection for d in explain_pair(root.uri, "cat-1", uri).selections] == [storage.name_of(uri)]
    with pytest.raises(ArtifactError, match="is not below"):
        explain_pair(str(tmp_path), "cat-1", uri)


def test_a_run_narrows_what_is_looked_at(root) -> None:
    names = [d.selection for d in explain(root.uri, "cat-1", "monday", None).selections]
    assert [name[:6] for name in names] == ["curate"]
    with pytest.raises(RecipeError, match="did you mean 'monday'"):
        explain(root.uri, "cat-1", "mondey", None)


def test_an_unknown_uid_gets_the_nearest_or_the_reason_of_ingest(root, tmp_path) -> None:
    with pytest.raises(ShardError, match=r"^cat-11: .*did you mean 'cat-1'"):
        explain_pair(root.uri, "cat-11")
    with pytest.raises(ShardError, match=r"^torn-1: ingest dropped 'torn-1.jpg' from shard 00001 .*unreadable"):
        explain_pair(root.uri, "torn-1")
    with pytest.raises(ShardError, match="has those that exist"):
        explain_pair(root.uri, "§§§§§§§§")
    with pytest.raises(ArtifactError, match="no shard set"):
        explain_pair(str(tmp_path), "cat-1")


def test_a_selection_of_an_older_clipworks_is_named(root, tmp_path) -> None:
    old = Root(tmp_path)
    pairs = old.put("pairs", "shard_set", {}, write_pairs)
    old.put("curate", "selection", {"pairs": pairs}, revision=1)
    explanation = explain_pair(old.uri, "cat-1")
    assert explanation.selections == ()
    assert explanation.unread[0].startswith("curate-")


def test_hostile_captions_do_not_reach_the_terminal(root) -> None:
    text = shown(root, "bad-1", 80)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[31mred\\u202e dog in two lines" in shown(root, "bad-1")


def test_json_holds_everything(root) -> None:
    explanation = explain_pair(root.uri, "dog-1")
    assert json.loads(as_text(explanation)) == as_json(explanation)
    assert json.loads(as_text(explanation))["selections"][0]["entries"][0]["entry"] == "dog"


def test_a_line_is_cut_and_a_number_that_json_lacks_is_null() -> None:
    assert one_line("a" * 100_000, 5) == "aaaa…"
    assert one_line(" two \n lines ", 9) == "two lines"
    assert as_json({"a": (float("nan"), 1.0)}) == {"a": [None, 1.0]}
