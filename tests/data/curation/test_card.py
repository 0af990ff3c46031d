"""The data card: honest numbers, the same bytes again, and nothing on the page that captions or vendors smuggle in."""

import base64
import io
import json
import re
import struct
import zlib
from html.parser import HTMLParser

import pytest
from PIL import Image

from data.artifacts import Artifact, Record
from data.curation.bars import bin_names, histogram
from data.curation.card import (
    CardFacts,
    Duplicates,
    EntryCounts,
    Histogram,
    LanguageCount,
    Step,
    TopEntry,
    card_json,
    share,
    write_card,
)
from data.curation.plain import as_json
from data.curation.thumbnails import Chosen, Example, make_examples, may_be_shown, thumbnail
from data.shards import Pair, ShardSet, write_manifest, write_shard

HOSTILE = "</style><script>alert(1)</script><img src=http://example.org/x onerror=alert(2)>\x00\u202e{{ 7*7 }}"
PNG = "data:image/png;base64,"


def picture(width: int = 8, height: int = 6, colour: str = "teal", kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(sink, kind)
    return sink.getvalue()


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


FACTS = CardFacts(
    title="a small pool",
    splits=("train",),
    caption_source="alt",
    steps=(
        Step("captions", 12_345, 45),
        Step("filters", 12_300, 2_300, {"image_size": 1_700, "language": 600}),
        Step("balancing", 10_000, 7_111),
    ),
    filter_values=(Histogram("image_size", (0, 64, 512), (1_700, 10_600), bounds=(64,)),),
    t=20,
    entry_counts=EntryCounts((0, 1, 2, 4), (5, 31, 17), (6, 33, 14)),
    top_entries=(TopEntry(HOSTILE, "en", 4_321, 1_234, 0.0625), TopEntry("cat", "en", 77, 66, 1.0)),
    languages=(LanguageCount("en", 11_001, 2_701, 20), LanguageCount("", 44, 3)),
    picture_sides=Histogram("shorter_side", (0, 64, float("inf")), (1_700, 10_645), kept=(808, 2_081)),
    caption_words=Histogram("caption_length", (0, 4, 8), (9_998, 2_347)),
    duplicates=Duplicates(111, 222, {"exact": 333}),
    protected={"imagenet": 99},
    examples=(
        Example("kept-1", "a cat", "", 0.375, PNG + base64.b64encode(picture()).decode(), False),
        Example("lost-1", HOSTILE, "language", 0.0, None, False),
        Example("art-1", "forbidden art", "language", 0.0, PNG + "SECRET", True),
    ),
)
BARE = CardFacts("bare", ("train",), "alt", (Step("captions", 10, 0),))


class Page(HTMLParser):
    """Tags, what they point at, and the text that is read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data) -> None:
        self.text += data + " "


@pytest.fixture
def page(tmp_path) -> Page:
    write_card(str(tmp_path), FACTS)
    return Page((tmp_path / "card.html").read_text())


def test_the_page_opens_with_what_was_kept_of_what(page) -> None:
    text = " ".join(page.text.split())
    assert "Of 12,345 pairs in train, 2,889 were kept (23.4 %)." in text
    assert text.index("2,889 were kept") < text.index("step by step") < text.index("Balancing")


def test_every_number_of_the_json_is_on_the_page(page, tmp_path) -> None:
    facts = json.loads((tmp_path / "card.json").read_text())
    assert facts["kept"] == 2_889
    counts = [
        number for step in facts["steps"] for number in (step["pairs"], step["dropped"], *step["reasons"].values())
    ]
    counts += [
        row[side] for rows in ("top_entries", "languages") for row in facts[rows] for side in ("before", "after")
    ]
    counts += [
        *facts["entry_counts"]["before"],
        *facts["entry_counts"]["after"],
        facts["t"],
        *facts["protected"].values(),
    ]
    counts += [count for plot in facts["filter_values"] for count in plot["counts"]]
    counts += facts["picture_sides"]["counts"] + facts["picture_sides"]["kept"] + facts["caption_words"]["counts"]
    counts += [
        facts["duplicates"]["groups"],
        facts["duplicates"]["redundant"],
        *facts["duplicates"]["by_kind"].values(),
    ]
    shown = set(re.findall(r"[\d,]*\d", page.text))
    assert {f"{count:,}" for count in counts} <= shown
    assert all(example["uid"] in page.text for example in facts["examples"])


def test_json_is_the_facts_without_the_pictures(tmp_path) -> None:
    write_card(str(tmp_path), FACTS)
    facts = json.loads((tmp_path / "card.json").read_text())
    assert [example["picture"] for example in facts["examples"]] == [True, False, False]
    assert facts["steps"] == as_json(FACTS.steps)
    assert facts["picture_sides"]["edges"] == [0, 64, None]  # no end
    assert "base64" not in json.dumps(facts)


def test_hostile_text_is_text(page) -> None:
    assert "script" not in page.tags
    assert page.handlers == []
    assert page.links
    assert all(link.startswith("data:image/") for link in page.links)
    assert "<script>alert(1)</script>" in page.text
    assert "\\x00\\u202e" in page.text
    assert "{{ 7*7 }}" in page.text


def test_the_page_asks_nothing_of_the_network(tmp_path) -> None:
    write_card(str(tmp_path), FACTS)
    html = (tmp_path / "card.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|<link|<iframe|<object", html)


def test_equal_facts_give_equal_bytes(tmp_path) -> None:
    for name in ("one", "two"):
        write_card(str(tmp_path / name), FACTS)
    for file in ("card.html", "card.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    write_card(str(tmp_path / "three"), FACTS._replace(t=21))
    assert (tmp_path / "three" / "card.html").read_bytes() != (tmp_path / "one" / "card.html").read_bytes()


def test_a_withheld_picture_is_never_in_the_page(tmp_path) -> None:
    write_card(str(tmp_path), FACTS)
    html = (tmp_path / "card.html").read_text()
    assert "SECRET" not in html
    assert "picture withheld" in html
    open_card = FACTS._replace(examples=(FACTS.examples[2]._replace(withheld=False),))
    write_card(str(tmp_path), open_card)  # the control: it is the flag that kept it out
    assert "SECRET" in (tmp_path / "card.html").read_text()


def test_a_bare_card_has_no_empty_sections(tmp_path) -> None:
    write_card(str(tmp_path), BARE)
    page = Page((tmp_path / "card.html").read_text())
    assert "Nothing was dropped." in page.text
    assert page.tags.count("section") == 1
    assert "svg" not in page.tags
    write_card(str(tmp_path), BARE._replace(steps=()))
    assert "Of 0 pairs" in (tmp_path / "card.html").read_text()


def test_a_funnel_that_leaks_is_refused(tmp_path) -> None:
    leaking = BARE._replace(steps=(Step("captions", 10, 1), Step("filters", 8, 0)))
    with pytest.raises(AssertionError, match="leaks before filters"):
        write_card(str(tmp_path), leaking)


def test_long_captions_are_cut_in_page_and_json(tmp_path) -> None:
    write_card(str(tmp_path), BARE._replace(examples=(Example("u", "long " * 1_000_000, "", 1.0, None, False),)))
    assert (tmp_path / "card.html").stat().st_size < 20_000
    (example,) = json.loads((tmp_path / "card.json").read_text())["examples"]
    assert len(example["caption"]) == 160


def test_only_small_pictures_we_made_are_taken(tmp_path) -> None:
    for uri in ("http://example.org/x.png", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AAAA"):
        with pytest.raises(AssertionError):
            write_card(str(tmp_path), BARE._replace(examples=(Example("u", "c", "", 1.0, uri, False),)))


# -------------------------------------------------------------------------------------------------------------- plots


def test_bars_stand_as_high_as_their_counts() -> None:
    svg = str(histogram("h", [0, 1, 2, 3], [("after", [10, 5, 0])]))
    first, second = (float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', svg))
    assert first == pytest.approx(2 * second, abs=0.11)


def test_a_bound_stands_between_the_edges_it_lies_between() -> None:
    svg = str(histogram("h", [0, 10, 100], [("after", [1, 1])], marks=[5, 55, 1e9]))
    assert ">∞<" in histogram("h", [0, 8, float("inf")], [("after", [1, 1])], marks=[9])
    places = [float(x) for x in re.findall(r'class="mark" x1="([\d.]+)"', svg)]
    assert places[1] - places[0] == pytest.approx((420 - 48) / 2, abs=0.11)  # middles of two bins
    assert places[2] == 420 - 8


def test_a_flat_or_empty_histogram_is_drawn() -> None:
    assert "<rect" not in histogram("h", [0, 1], [("after", [0])])
    assert "<rect" not in histogram("h", [], [("after", [])])
    assert "<rect" in histogram("h", [0, 1], [("after", [1])], is_log=True)


def test_bins_and_shares_are_named_as_people_say_them() -> None:
    assert bin_names([0, 1, 2, 4, 1024, 2048]) == ["0", "1", "2–3", "4–1,023", "1,024–2,047"]
    assert [share(0, 5), share(1, 2000), share(1, 3), share(1, 0)] == ["0.0 %", "0.05 %", "33.3 %", "0.0 %"]


# ----------------------------------------------------------------------------------------------------------- pictures


def bomb() -> bytes:
    """A PNG whose header claims 30,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + picture()[33:]


@pytest.mark.parametrize("content", [b"", b"not a picture", picture()[:40], picture(kind="JPEG")[:200], bomb()])
def test_what_does_not_decode_has_no_thumbnail(content) -> None:
    assert thumbnail(content) is None


def test_a_picture_above_the_limit_is_not_unpacked() -> None:
    content = picture(100, 100)
    assert thumbnail(content, max_pixels=9_999) is None
    assert thumbnail(content, max_pixels=10_000) is not None


@pytest.mark.parametrize(("kind", "size", "small"), [("JPEG", (640, 320), (160, 80)), ("WEBP", (30, 20), (30, 20))])
def test_a_thumbnail_keeps_its_shape(kind, size, small) -> None:
    image = decoded(thumbnail(picture(*size, "red", kind)))
    assert image.size == small
    red, green, blue = image.convert("RGB").getpixel((small[0] // 2, small[1] // 2))
    assert red > 240 and green < 15 and blue < 15


def test_what_is_transparent_lies_on_white() -> None:
    sink = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(sink, "PNG")
    assert decoded(thumbnail(sink.getvalue())).getpixel((1, 1)) == (255, 255, 255)


def test_a_vendor_must_be_listed_and_allowed() -> None:
    card = {"vendors": {"Goog": {"may_be_shown": True}, "Appl": {"may_be_shown": False}}}
    assert may_be_shown(card, {"vendor": "Goog"})
    assert not any(may_be_shown(card, meta) for meta in ({"vendor": "Appl"}, {"vendor": "Nobody"}, {}))
    assert may_be_shown({}, {}) and may_be_shown({"title": "web"}, {"vendor": "Appl"})


def test_examples_read_the_pictures_that_may_be_shown_and_no_others(tmp_path, monkeypatch) -> None:
    names = {"a": [("goog-1", "Goog", picture()), ("appl-1", "Appl", picture())], "b": [("goog-2", "Goog", b"torn")]}
    shards = [
        write_shard(str(tmp_path), name, [Pair(u, image, "png", {"alt": u}, {"vendor": v}) for u, v, image in rows])
        for name, rows in names.items()
    ]
    write_manifest(str(tmp_path), shards, [])
    card = {"vendors": {"Goog": {"may_be_shown": True}, "Appl": {"may_be_shown": False}}}
    record = Record(
        kind="shard_set", stage="ingest", revision=1, fingerprint="f", config={}, metrics={"data_card": card}
    )
    shard_set, read = ShardSet(Artifact(str(tmp_path), record)), []
    read_image = shard_set.read_image
    monkeypatch.setattr(shard_set, "read_image", lambda *place: read.append(place) or read_image(*place))
    chosen = [
        Chosen(1, "goog-2", None, "", 1.0),
        Chosen(0, "appl-1", "art", "", 1.0),
        Chosen(0, "goog-1", "b", "", 0.5),
    ]
    torn, art, shown = make_examples(shard_set, chosen)
    assert (torn.uid, torn.picture, torn.withheld, torn.caption) == ("goog-2", None, False, "")
    assert (art.uid, art.picture, art.withheld) == ("appl-1", None, True)
    assert decoded(shown.picture).size == (8, 6)
    assert len(read) == 2
    assert card_json(BARE._replace(examples=(shown,)))["examples"][0]["picture"] is True
