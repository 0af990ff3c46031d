"""The report stage: what it says, what it shows, what it must not show, and what it refuses."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data.errors import ArtifactError, EvaluationError
from evaluation import numbers
from evaluation.axis import axis_over
from evaluation.results import HELPED, HURT, UNCLEAR, verdict_of
from evaluation.specs import ReportSpec

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


@pytest.fixture
def parts(world):
    """Three models (noise, weak, strong), a control, and everything else a report can show."""
    selection = world.select(**CURATION)
    made = {"pairs": world.shard_set, "split": world.split, "selection": selection}
    for label, skill in (("untrained", 0.0), ("weak", 0.5), ("strong", 3.0), ("same", 3.0)):
        checkpoint = world.checkpoint(label, selection, LOG)
        features = world.embed(f"embed-{len(label) if label != 'same' else 6}-{label}", checkpoint, skill, QUERIES)
        made[f"evaluations.{label}"] = world.evaluate(f"evaluate-{label}", features)
        made[f"checkpoints.{label}"] = checkpoint
    made["gallery"] = features
    made["rewrites"] = world.rewrite(
        selection,
        [
            {"caption": "red circle", "rewrite": "a red circle", "accepted": True, "reason": ""},
            {"caption": "blue cross", "rewrite": "a cross of <i>nations</i>", "accepted": False, "reason": "invented"},
            {"caption": "gold square", "rewrite": "", "accepted": False, "reason": "empty"},
        ],
    )
    return made


def spec(**changes):
    labels = ("untrained", "weak", "strong", "same")
    fields = {
        "title": "Shapes & <colours>", "pairs": "p", "split": "s", "selection": "c", "rewrites": "r", "gallery": "g",
        "evaluations": {label: f"e-{label}" for label in labels}, "controls": ("untrained",),
        "checkpoints": {label: label for label in labels},
        "compare": {"weak": "untrained", "strong": "weak", "same": "strong", "untrained": "strong"},
        "gallery_split": "unseen_concepts", "gallery_vendors": ("Goog",), "queries": QUERIES,
        "headline": ("unseen_vendor", "captions", "image_to_text_R@1"),
    }  # fmt: skip
    return ReportSpec(**(fields | changes))


def test_the_report_says_what_the_numbers_say(world, parts):
    report = world.run("report", spec(), **parts)
    facts = json.loads(Path(report.at("report.json")).read_text())
    verdicts = {item["label"]: item["verdict"] for item in facts["comparisons"]}
    assert verdicts == {"weak": HELPED, "strong": HELPED, "same": UNCLEAR, "untrained": HURT}
    strong = next(item for item in facts["comparisons"] if item["label"] == "strong")
    assert strong["value"] == pytest.approx(strong["after"] - strong["before"])
    assert facts["headline"]["final"] == "same"
    assert [row["label"] for row in facts["headline"]["rows"] if row["control"]] == ["untrained"]
    # 2 splits, 4 labels, 2 zero-shot metrics (4 classes: no top-5) and 2 directions of R@1, R@5, median rank
    assert len(facts["rows"]) == 2 * 4 * (2 + 2 * 3)
    assert report.record.metrics["headline"] == facts["headline"]
    # parents come before children, and everything behind the page is there
    names = [item["name"] for item in facts["provenance"]]
    assert names.index("emoji") < names.index("split") < names.index("strong") < names.index("evaluate-strong")
    assert len(names) == len(set(names))


def test_the_page_is_whole_escaped_and_asks_nobody(world, parts):
    page = Path(world.run("report", spec(), **parts).at("report.html")).read_text()
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
    page = Path(world.run("report", spec(), **parts).at("report.html")).read_text()
    titles = {attrs["title"] for tag, attrs in Tags(page).found if tag == "img"}
    assert titles
    assert {title.split("-")[0] for title in titles} == {"goog"}
    open_page = Path(world.run("all", spec(title="all", gallery_vendors=()), **parts).at("report.html")).read_text()
    shown = {attrs["title"].split("-")[0] for tag, attrs in Tags(open_page).found if tag == "img"}
    assert shown == {"appl", "goog"}  # the held-out vendor is in neither the training pairs nor this gallery split


def test_the_same_inputs_give_the_same_bytes(world, parts):
    first = world.run("report", spec(), **parts)
    before = Path(first.at("report.html")).read_bytes()
    for file in Path(first.uri).iterdir():
        file.unlink()
    Path(first.uri).rmdir()
    assert Path(world.run("report", spec(), **parts).at("report.html")).read_bytes() == before


def test_what_is_not_there_is_not_shown(world, parts):
    bare = spec(
        rewrites=None, gallery=None, gallery_split=None, queries=(), compare={}, checkpoints={}, controls=(),
        evaluations={"strong": "e"}, headline=("unseen_vendor", "groups", "mean_per_class_recall"),
    )  # fmt: skip
    needed = {role: parts[role] for role in ("pairs", "split", "selection", "evaluations.strong")}
    page = Path(world.run("report", bare, **needed).at("report.html")).read_text()
    sections = {attrs["id"] for tag, attrs in Tags(page).found if tag == "section"}
    assert sections == {"headline", "numbers", "curation", "data", "provenance"}
    assert "None" not in Tags(page).text.partition("</style>")[2]


def test_a_median_rank_can_be_the_headline_and_lower_is_better(world, parts):
    changed = spec(headline=("unseen_vendor", "captions", "IMAGE_to_text_median_rank"))  # capitals do not matter
    facts = json.loads(Path(world.run("report", changed, **parts).at("report.json")).read_text())
    weak = next(item for item in facts["comparisons"] if item["label"] == "weak")
    assert weak["value"] < 0
    assert weak["verdict"] == HELPED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare": {"week": "untrained"}}, "compare: 'week' is not an evaluation; did you mean 'weak'"),
        ({"controls": ("shuffled",)}, "controls: 'shuffled' is not an evaluation"),
        ({"controls": ("untrained", "weak", "strong", "same")}, "every evaluation is a control"),
        ({"headline": ("unseen_vendor", "captions", "image_to_text_R@2")}, r"did you mean .*R@"),
        ({"gallery_vendors": ("Wind",)}, "gallery_vendors: no embedded picture"),
        ({"gallery_split": "unseen_concept"}, "did you mean 'unseen_concepts'"),
    ],
)
def test_what_the_recipe_got_wrong_is_said_in_one_line(world, parts, changes, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        world.run("report", spec(**changes), **parts)
    assert "\n" not in str(caught.value)


def test_a_query_that_was_not_embedded_is_an_error(world, parts):
    with pytest.raises(ArtifactError, match="'zebra' was not embedded"):
        world.run("report", spec(queries=("zebra",)), **parts)


def test_models_scored_on_other_queries_are_not_compared(world, parts, make_world):
    features = world.embed("embed-other", world.checkpoint("other", world.select()), change=_forget_one)
    parts["evaluations.weak"] = world.evaluate("evaluate-other", features)
    with pytest.raises(EvaluationError, match="differ in"):
        world.run("report", spec(), **parts)


def _forget_one(uri):
    import numpy as np
    import pyarrow.parquet as pq

    from data.shards import write_parquet

    table = pq.read_table(f"{uri}/images.parquet")
    write_parquet(f"{uri}/images.parquet", table.slice(1))
    np.save(f"{uri}/images.npy", np.load(f"{uri}/images.npy")[1:])


@pytest.mark.parametrize(
    ("low", "high", "better", "verdict"),
    [
        (0.01, 0.05, "higher", HELPED), (-0.05, -0.01, "higher", HURT), (-0.01, 0.02, "higher", UNCLEAR),
        (-9.0, -2.0, "lower", HELPED), (2.0, 9.0, "lower", HURT), (0.0, 0.0, "higher", UNCLEAR),
        (0.0, 0.1, "higher", UNCLEAR),
    ],
)  # fmt: skip
def test_verdicts_say_only_what_the_interval_says(low, high, better, verdict):
    assert verdict_of(low, high, better) == verdict


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
    assert [numbers.size(value) for value in (7, 8_423_000, 1.2e9)] == ["7", "8.42 M", "1.2 B"]
    assert [numbers.short(value) for value in (True, None, 1234567, 0.00123, [1, "a"])] == [
        "yes", "none", "1,234,567", "0.00123", "1, a",
    ]  # fmt: skip
