"""The report stage: what it says, what it shows, what it must not show, and what it refuses."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from data.errors import ArtifactError, EvaluationError
from data.shards import write_parquet
from evaluation import numbers
from evaluation.axis import axis_over
from evaluation.comparison import holm
from evaluation.results import CHANGED, HELPED, HURT, UNCLEAR, Results, key_of, verdict_of
from evaluation.rows import Rows
from evaluation.showcase import classes_of
from evaluation.specs import (
    Calibration,
    Gallery,
    Geometry,
    NearestNeighbours,
    OutOfDistribution,
    Probe,
    ReportSpec,
    Retrieval,
    Robustness,
    Shown,
    VisualFactors,
    ZeroShot,
)
from evaluation.tables import tables
from training.specs import Prompts

QUERIES = ("red thing", "<script>alert(1)</script>")
LOG = [
    {"phase": phase, "step": step, "samples_seen": 256 * (step + 1), "loss": 4.0 - 0.1 * step, "lr": 1e-3}
    for phase in ("first", "second") for step in range(12)
]  # fmt: skip
CURATION = {
    "t": 20, "matching": "exact", "entries": 4,
    "entry_counts": {"edges": [0, 1, 2, 4], "before": [1, 2, 3], "after": [2, 2, 2]},
    "top_entries": [{"entry": "<b>red</b>", "before": 9, "after": 5, "p": 0.5}],
}  # fmt: skip


class Tags(HTMLParser):
    """Collects tags and their attributes; complains about tags that are closed in another order."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory, world_at):
    """Three models (noise, weak, strong), a control, and everything else a report can show: made once."""
    world = world_at(tmp_path_factory.mktemp("report") / "runs")
    selection = world.select(**CURATION)
    parts = {"sets.emoji.pairs": world.shard_set, "split": world.split, "selection": selection}
    for label, skill in (("untrained", 0.0), ("weak", 0.5), ("strong", 3.0), ("same", 3.0)):
        checkpoint = world.checkpoint(label, selection, LOG)
        features = world.embed(f"embed-{len(label) if label != 'same' else 6}-{label}", checkpoint, skill, QUERIES)
        parts[f"evaluations.{label}"] = world.evaluate(f"evaluate-{label}", features)
        parts[f"checkpoints.{label}"] = checkpoint
    parts["gallery.features"] = features
    parts["rewrites"] = world.rewrite(
        selection,
        [
            {"caption": "red circle", "rewrite": "a red circle", "accepted": True, "reason": ""},
            {"caption": "blue cross", "rewrite": "a cross of <i>nations</i>", "accepted": False, "reason": "invented"},
            {"caption": "gold square", "rewrite": "", "accepted": False, "reason": "empty"},
        ],
    )
    return world, parts


@pytest.fixture
def world(made):
    return made[0]


@pytest.fixture
def parts(made):
    return dict(made[1])


def spec(**changes):
    labels = ("untrained", "weak", "strong", "same")
    fields = {
        "title": "Shapes & <colours>", "split": "s", "selection": "c", "rewrites": "r",
        "evaluations": {label: f"e-{label}" for label in labels}, "controls": ("untrained",),
        "checkpoints": {label: label for label in labels},
        "compare": {"weak": "untrained", "strong": "weak", "same": "strong", "untrained": "strong"},
        "sets": {"emoji": Shown(pairs="p", vendors=("Goog",))},
        "gallery": Gallery(features="g", split="unseen_concepts", queries=QUERIES),
        "headline": ("emoji", "unseen_vendor", "captions", "image_to_text_R@1"),
    }  # fmt: skip
    return ReportSpec(**(fields | changes))


def facts_of(report):
    return json.loads(Path(report.at("report.json")).read_text(), parse_constant=lambda name: pytest.fail(name))


def page_of(report):
    return Path(report.at("report.html")).read_text()


def test_the_report_says_what_the_numbers_say(world, parts):
    report = world.run("report", spec(), **parts)
    facts = facts_of(report)
    verdicts = {item["label"]: item["verdict"] for item in facts["comparisons"]}
    assert verdicts == {"weak": HELPED, "strong": HELPED, "same": UNCLEAR, "untrained": HURT}
    strong = next(item for item in facts["comparisons"] if item["label"] == "strong")
    assert strong["value"] == pytest.approx(strong["after"] - strong["before"])
    assert facts["headline"]["final"] == "same"
    assert [row["label"] for row in facts["headline"]["rows"] if row["control"]] == ["untrained"]
    asked = [row for row in facts["rows"] if not row["baseline"]]
    # 2 splits, 4 labels, 3 zero-shot metrics (4 classes: no top-5) and 2 directions of R@1, R@5, median rank
    assert len(asked) == 2 * 4 * (3 + 2 * 3)
    assert {row["baseline"] for row in facts["rows"]} == {"", "majority", "shuffled_labels"}
    assert report.record.metrics["headline"] == facts["headline"]
    # parents come before children, and everything behind the page is there
    names = [item["name"] for item in facts["provenance"]]
    assert names.index("emoji") < names.index("split") < names.index("strong") < names.index("evaluate-strong")
    assert len(names) == len(set(names))


def test_the_page_is_whole_escaped_and_asks_nobody(world, parts):
    page = page_of(world.run("report", spec(), **parts))
    tags = Tags(page)
    assert not tags.open
    assert not {tag for tag, _ in tags.found} & {"script", "link", "iframe", "object"}
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in tags.found if tag == "img")
    assert all(attrs["href"].startswith("#") for tag, attrs in tags.found if tag == "a")
    assert not re.search(r"url\((?!#)|@import", page)
    for text in (
        "Shapes & <colours>",
        QUERIES[1],
        "<b>red</b>",
        "a cross of <i>nations</i>",
        "no difference we can see",
        "<Goog> licence",
    ):
        assert text in tags.text
    sections = {attrs["id"] for tag, attrs in tags.found if tag == "section"}
    links = {attrs["href"].removeprefix("#") for tag, attrs in tags.found if tag == "a"}
    assert links == sections
    assert {"steps", "gallery", "curation", "captions", "training", "provenance"} <= sections


def test_pictures_of_other_vendors_are_never_in_the_page(world, parts):
    page = page_of(world.run("report", spec(), **parts))
    titles = {attrs["title"] for tag, attrs in Tags(page).found if tag == "img"}
    assert titles
    assert {title.split("-")[0] for title in titles} == {"goog"}
    open_page = page_of(world.run("all", spec(title="all", sets={"emoji": Shown(pairs="p")}), **parts))
    shown = {attrs["title"].split("-")[0] for tag, attrs in Tags(open_page).found if tag == "img"}
    assert shown == {"appl", "goog", "twtr"}


def test_without_word_of_what_may_be_shown_nothing_is(world, parts):
    blind = spec(sets={}, gallery=None)
    needed = {role: artifact for role, artifact in parts.items() if not role.startswith(("sets.", "gallery."))}
    assert not [tag for tag, _ in Tags(page_of(world.run("blind", blind, **needed))).found if tag == "img"]


def test_the_same_inputs_give_the_same_bytes(world, parts):
    first = world.run("report", spec(), **parts)
    before = Path(first.at("report.html")).read_bytes()
    for file in Path(first.uri).iterdir():
        file.unlink()
    Path(first.uri).rmdir()
    assert Path(world.run("report", spec(), **parts).at("report.html")).read_bytes() == before


def test_what_is_not_there_is_not_shown(world, parts):
    bare = spec(
        rewrites=None, gallery=None, compare={}, checkpoints={}, controls=(), split=None, selection=None, sets={},
        evaluations={"strong": "e"}, headline=("emoji", "unseen_vendor", "groups", "mean_per_class_recall"),
    )  # fmt: skip
    needed = {"evaluations.strong": parts["evaluations.strong"]}
    page = page_of(world.run("report", bare, **needed))
    sections = {attrs["id"] for tag, attrs in Tags(page).found if tag == "section"}
    assert sections == {"headline", "axes", "classes", "numbers", "provenance"}
    assert "None" not in Tags(page).text.partition("</style>")[2]


def test_a_median_rank_can_be_the_headline_and_lower_is_better(world, parts):
    """Capitals of the name do not matter."""
    changed = spec(headline=("emoji", "unseen_vendor", "captions", "IMAGE_to_text_median_rank"))
    facts = facts_of(world.run("report", changed, **parts))
    weak = next(item for item in facts["comparisons"] if item["label"] == "weak")
    assert weak["value"] < 0
    assert weak["verdict"] == HELPED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare": {"week": "untrained"}}, "compare: 'week' is not an evaluation; did you mean 'weak'"),
        ({"controls": ("shuffled",)}, "controls: 'shuffled' is not an evaluation"),
        ({"controls": ("untrained", "weak", "strong", "same")}, "every evaluation is a control"),
        ({"headline": ("emoji", "unseen_vendor", "captions", "image_to_text_R@2")}, r"did you mean .*R@"),
        ({"sets": {"emoji": Shown(pairs="p", vendors=("Wind",))}}, r"gallery\.split: no embedded picture"),
        ({"gallery": Gallery(features="g", split="unseen_concept", queries=QUERIES)}, "did you mean 'unseen_concepts'"),
    ],
)
def test_what_the_recipe_got_wrong_is_said_in_one_line(world, parts, changes, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        world.run("report", spec(**changes), **parts)
    assert "\n" not in str(caught.value)


def test_a_query_that_was_not_embedded_is_an_error(world, parts):
    asked = Gallery(features="g", split="unseen_concepts", queries=("zebra",))
    with pytest.raises(ArtifactError, match="'zebra' was not embedded"):
        world.run("report", spec(gallery=asked), **parts)


def test_a_headline_of_other_samples_is_not_compared(world, parts):
    features = world.embed(
        "embed-other", world.checkpoint("other", world.select()), change=_forget("unseen_vendor", world)
    )
    parts["evaluations.weak"] = world.evaluate("evaluate-other", features)
    with pytest.raises(EvaluationError, match="differ in the samples"):
        world.run("report", spec(), **parts)


def test_what_was_asked_of_other_samples_is_named_and_not_subtracted(world, parts):
    forget = _forget("unseen_concepts", world)
    features = world.embed("embed-fewer", world.checkpoint("fewer", world.select()), change=forget)
    parts["evaluations.weak"] = world.evaluate("evaluate-fewer", features)
    facts = facts_of(world.run("report", spec(), **parts))
    named = {tuple(key) for key in facts["not_comparable"]}
    assert ("emoji", "unseen_concepts", "groups", "top1") in named
    assert {key[1] for key in named} == {"unseen_concepts"}
    touched = {item["split"] for item in facts["differences"] if "weak" in (item["label"], item["against"])}
    assert touched == {"unseen_vendor"}
    assert ("emoji", "unseen_concepts", "groups", "top1") not in {
        tuple(key) for axis in facts["axes"] for key in axis["metrics"] if axis["marks"]["weak"]["verdict"]
    }


def _forget(split, world):
    """Take the first picture of a split out of a feature set."""

    def change(uri):
        table, images = pq.read_table(f"{uri}/images.parquet"), np.load(f"{uri}/images.npy")
        row = next(at for at, uid in enumerate(table["uid"].to_pylist()) if uid in world.uids(split))
        kept = [at for at in range(table.num_rows) if at != row]
        write_parquet(f"{uri}/images.parquet", table.take(kept))
        np.save(f"{uri}/images.npy", images[kept])

    return change


def test_marks_survive_correction_over_their_own_table(world, parts):
    facts = facts_of(world.run("report", spec(), **parts))
    for family in ("headline", "main", "other"):
        own = [item for item in facts["differences"] if item["family"] == family and item["p"] is not None]
        assert len(own) >= 4
        assert [item["p_corrected"] for item in own] == pytest.approx(holm([item["p"] for item in own]))
    for item in facts["differences"]:
        if item["verdict"] != UNCLEAR:
            assert item["p_corrected"] < 0.05
            assert not item["low"] <= 0 <= item["high"]
    # the steps of the pipeline are compared with an exact test of what one model alone has right
    strong = next(item for item in facts["comparisons"] if item["label"] == "strong")
    assert strong["test"] == "exact sign flips"
    assert strong["value"] == pytest.approx((strong["only_ours"] - strong["only_theirs"]) / 40)
    assert strong["p"] == pytest.approx(
        stats.binomtest(strong["only_ours"], strong["only_ours"] + strong["only_theirs"]).pvalue
    )


def test_axes_are_means_of_named_metrics_of_one_unit(world, parts):
    facts = facts_of(world.run("report", spec(), **parts))
    values = {(row["label"], *key_of(row)): row for row in facts["rows"] if not row["baseline"]}
    assert [axis["name"] for axis in facts["axes"]] == ["zero-shot accuracy", "retrieval"]
    for axis in facts["axes"]:
        assert set(axis["marks"]) == {"weak", "strong", "same"}  # a control is no model to praise
        for label, mark in axis["marks"].items():
            rows = [values[(label, *key)] for key in axis["metrics"]]
            assert mark["value"] == pytest.approx(np.mean([row["value"] for row in rows]))
            assert mark["low"] <= mark["value"] <= mark["high"]
            assert {(row["unit"], row["better"]) for row in rows} == {("fraction", "higher")}
        assert axis["chance"] == pytest.approx(np.mean([row["chance"] for row in rows]))
    assert facts["axes"][1]["marks"]["strong"]["verdict"] == HELPED
    assert facts["axes"][1]["marks"]["same"]["verdict"] == UNCLEAR


def test_tables_hold_baselines_and_chance_beside_every_headline(world, parts):
    results = Results({"weak": parts["evaluations.weak"], "strong": parts["evaluations.strong"]})
    found = {(t.split, t.task, t.direction): t for t in tables(results, ["weak", "strong"], (), [])}
    table = found["unseen_vendor", "groups", ""]
    shuffled = "shuffled labels"
    assert [(line.label, line.beside) for line in table.lines] == [
        ("weak", ""), ("weak", shuffled), ("strong", ""), ("strong", shuffled), ("majority", "majority"),
    ]  # fmt: skip
    assert table.lines[-1].cells["top1"]["value"] == 0.25
    assert found["unseen_vendor", "captions", "image_to_text"].metrics == [
        "image_to_text_R@1", "image_to_text_R@5", "image_to_text_median_rank",
    ]  # fmt: skip


def test_worst_classes_by_hand():
    labels = ["cat"] * 4 + ["dog"] * 2 + ["owl"] * 2
    said = ["dog", "dog", "owl", "cat", "cat", "cat", "owl", "owl"]
    correct = np.array([a == b for a, b in zip(labels, said, strict=True)], np.int64)
    ids = [str(at) for at in range(8)]
    rows = Rows(ids, ids, labels, said, {"correct": correct})
    found = classes_of(rows, None, None)
    assert [(one["name"], one["n"]) for one in found] == [("dog", 2), ("cat", 4), ("owl", 2)]
    assert [one["recall"] for one in found] == [0, 0.25, 1]
    assert found[0]["confusion"] == {"name": "cat", "count": 2}
    assert found[1]["confusion"] == {"name": "dog", "count": 2}
    assert found[2]["confusion"] is None
    assert all(one["low"] <= one["recall"] <= one["high"] for one in found)


@pytest.fixture(scope="module")
def everything(tmp_path_factory, world_at):
    """Two models and every kind of task a page draws something of."""
    world = world_at(tmp_path_factory.mktemp("everything") / "runs")
    asked = Prompts(field="group", templates=("{c}", "a picture of a {c}"))
    looks = {
        f"{kind}-{severity}": {"view": "corrupted", "kind": kind, "severity": severity}
        for kind in ("fog", "jpeg") for severity in (1, 3, 5)
    }  # fmt: skip
    tasks = {
        "groups": ZeroShot(prompts=asked), "captions": Retrieval(ks=(1, 5)), "geometry": Geometry(),
        "calibration": Calibration(prompts=asked, fit="train"), "robustness": Robustness(prompts=asked),
        "factors": VisualFactors(prompts=asked, fields=("base", "group"), min_pairs=5),
        "ood": OutOfDistribution(prompts=asked, out=("unseen_concepts",)),
        "shots": Probe(
            prompts=asked, head=NearestNeighbours(ks=(1, 3)), fit="train", select="unseen_concepts", shots=(1, 2, 4)
        ),
    }  # fmt: skip
    parts = {"sets.emoji.pairs": world.shard_set}
    for label, skill in (("weak", 0.5), ("strong", 2.0)):
        checkpoint = world.checkpoint(label, world.select())
        features = world.embed(
            f"embed-{label}", checkpoint, skill, splits=("unseen_vendor", "unseen_concepts", "train")
        )
        views = world.embed(f"views-{label}", checkpoint, skill, views=dict.fromkeys(looks, 0.4), view_specs=looks)
        parts[f"evaluations.{label}"] = world.evaluate(
            f"evaluate-{label}", features, views=views, tasks=tasks, splits=("unseen_vendor",)
        )
    fields = {
        "title": "Two checkpoints", "evaluations": {"weak": "w", "strong": "s"}, "compare": {"strong": "weak"},
        "sets": {"emoji": Shown(pairs="p")}, "headline": ("emoji", "unseen_vendor", "groups", "top1"),
    }  # fmt: skip
    return world.run("report", ReportSpec(**fields), **parts)


def test_every_kind_of_task_has_its_part(everything):
    page = page_of(everything)
    tags = Tags(page)
    sections = {attrs["id"] for tag, attrs in tags.found if tag == "section"}
    assert sections == {
        "headline", "steps", "axes", "robustness", "factors", "shots", "calibration", "ood", "geometry", "classes",
        "retrieved", "numbers", "chosen", "data", "provenance",
    }  # fmt: skip
    assert {attrs["href"].removeprefix("#") for tag, attrs in tags.found if tag == "a"} == sections
    assert not tags.open
    assert len(page) < 1_000_000
    text = tags.text.partition("</style>")[2]
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", text)
    # each panel of a curve draws every model in its own colour
    panels = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert sum("var(--s1)" in one and "var(--s2)" in one for one in panels) == 3 + 1
    assert not re.search(r"#0[1-8]0a0a|#0[1-6]0[1-6]0[1-6]", page)  # no marker colour is left


def test_chosen_hyper_parameters_are_listed_with_their_split(everything):
    chosen = facts_of(everything)["chosen"]
    assert {(one["label"], one["on"]) for one in chosen} >= {
        ("weak", "train"), ("strong", "train"), ("weak", "unseen_concepts"), ("strong", "unseen_concepts"),
    }  # fmt: skip
    assert any("temperature" in one["values"] for one in chosen)


@pytest.mark.parametrize(
    ("low", "high", "better", "verdict"),
    [
        (0.01, 0.05, "higher", HELPED), (-0.05, -0.01, "higher", HURT), (-0.01, 0.02, "higher", UNCLEAR),
        (-9.0, -2.0, "lower", HELPED), (2.0, 9.0, "lower", HURT), (0.0, 0.0, "higher", UNCLEAR),
        (0.0, 0.1, "higher", UNCLEAR), (0.1, 0.2, "neither", CHANGED), (None, None, "higher", UNCLEAR),
    ],
)  # fmt: skip
def test_verdicts_say_only_what_the_interval_says(low, high, better, verdict):
    assert verdict_of(low, high, better) == verdict
    assert verdict_of(low, high, better, p_corrected=0.06) == UNCLEAR


def test_axes_hold_their_values_between_round_ticks():
    axis = axis_over([0.003, 0.634])
    assert (axis.low, axis.high) == (0, pytest.approx(0.8))
    assert axis.at(0.4) == 50
    assert axis_over([1, 1815]).ticks == (0, 500, 1000, 1500, 2000)
    assert axis_over([0.0]).high > 0
    for high in (0.0007, 0.011, 0.3, 1.0, 7, 23_456):
        axis = axis_over([high])
        assert axis.low <= 0 < high <= axis.high * (1 + 1e-9)
        assert 3 <= len(axis.ticks) <= 8


def test_numbers_have_the_digits_they_deserve():
    assert numbers.percent(0.6321) == "63.2 %"
    assert numbers.percent(0.00031) == "0.03 %"
    assert numbers.percent(0) == "0.0 %"
    assert numbers.percent(1) == "100.0 %"
    assert numbers.interval(0.617, 0.6484, "fraction") == "61.7–64.8"
    assert numbers.interval(3, 1204, "rank") == "3–1,204"
    assert numbers.difference(-0.0312, "fraction") == "−3.1"
    assert numbers.difference(12, "rank") == "+12"
    assert numbers.measured(-0.031, "points") == "−3.1"
    assert numbers.measured(0.41234, "number") == "0.412"
    assert numbers.measured(None, "fraction") == "–"
    assert numbers.interval(-0.5, 0.25, "number") == "−0.5 to 0.25"
    assert numbers.interval(None, None, "fraction") == "no interval"
    assert [numbers.probability(p) for p in (0.0001, 0.0123, 0.4567, None)] == ["< 0.001", "0.012", "0.46", "–"]
    assert [numbers.size(value) for value in (7, 8_423_000, 1.2e9)] == ["7", "8.42 M", "1.2 B"]
    assert [numbers.short(value) for value in (True, None, 1234567, 0.00123, [1, "a"])] == [
        "yes", "none", "1,234,567", "0.00123", "1, a",
    ]  # fmt: skip
