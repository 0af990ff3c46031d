"""Filters: hand-made rows on both sides of each bound, nulls, and that a row is judged by itself."""

import json
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from data.curation import specs
from data.curation.filters import _FILES, build_filter
from data.curation.filters.base import Verdict

KINDS = {kind.model_fields["filter"].default for kind in specs.Filter.__origin__.__args__}


def judge(spec: specs.Filter, **columns: list[object]) -> Verdict:
    types = {
        "language_score": pa.float32(),
        "sharpness": pa.float32(),
        "entropy": pa.float32(),
        "clip_score": pa.float32(),
    }
    types |= {"width": pa.int32(), "height": pa.int32()}
    table = pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})
    made = build_filter(spec)
    assert made.needs == set(columns)
    found = made.judge(table)
    assert found.keeps.dtype == np.bool_ and len(found.keeps) == len(found.values) == table.num_rows
    json.dumps(found.values.to_pylist(), allow_nan=False)
    return found


def told(found: Verdict) -> list[tuple[object, bool]]:
    return list(zip(found.values.to_pylist(), found.keeps.tolist(), strict=True))


def metas(field: str, *values: object) -> list[object]:
    """Metadata with these values of a field, then without it, then none at all."""
    return [*(json.dumps({"other": 1, field: value}, ensure_ascii=False) for value in values), '{"other": 1}', None]


def test_every_filter_has_its_file_and_is_imported_when_it_is_made() -> None:
    assert set(_FILES) == KINDS
    code = (
        "import sys, data.curation.filters as f; sys.exit(any(m.startswith(f.__name__ + '.cap') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_caption_length() -> None:
    spec = specs.CaptionLength(min_words=2, max_words=3, min_characters=4, max_characters=8)
    rows = ["a b", "a  bc", "one", "a b c d", "a b c", "abcde fgh", "äö ü", " \u3000 ", "", None]
    assert told(judge(spec, caption=rows)) == [
        ("2 words, 3 characters", False),
        ("2 words, 5 characters", True),
        ("1 words, 3 characters", False),
        ("4 words, 7 characters", False),
        ("3 words, 5 characters", True),
        ("2 words, 9 characters", False),
        ("2 words, 4 characters", True),  # characters, not bytes
        ("0 words, 3 characters", False),
        ("0 words, 0 characters", False),
        (None, False),
    ]


def test_caption_characters() -> None:
    spec = specs.CaptionCharacters(min_letters_fraction=0.75)
    rows = ["a dog", "dog1", "do12", "IMG_0012.jpg", "собака", "犬の写真", "कुत्ता", "", None]
    found = judge(spec, caption=rows)
    assert found.keeps.tolist() == [True, True, False, False, True, True, True, False, False]
    assert found.values.to_pylist() == [1, 0.75, 0.5, 0.5, 1, 1, 1, None, None]


def test_caption_repetition() -> None:
    spec = specs.CaptionRepetition(max_fraction=0.5, min_words=4)
    long = " ".join(["a"] * 21 + [f"w{n}" for n in range(19)])
    rows = ["a a b c", "a A a b", "a a a", "a b c d", long, long + " x y", "", None]
    expected = [
        (0.5, True),
        (0.75, False),
        (0, True),
        (0.25, True),
        (21 / 40, False),
        (0.5, True),
        (0, True),
        (None, False),
    ]
    assert told(judge(spec, caption=rows)) == expected


def test_language() -> None:
    spec = specs.Language(languages=("en", "de"), min_score=0.7)
    found = judge(spec, language=["en", "de", "fr", "en", None], language_score=[0.7, 0.994, 0.99, 0.69, None])
    assert told(found) == [("en 0.7", True), ("de 0.99", True), ("fr 0.99", False), ("en 0.69", False), (None, False)]


def test_filters_on_pictures() -> None:
    assert told(judge(specs.Decodable(), problem=["", "unreadable_image", None])) == [
        ("", True), ("unreadable_image", False), (None, False),
    ]  # fmt: skip
    size = judge(specs.ImageSize(min_side=64), width=[64, 63, 640, None], height=[64, 640, 63, None])
    assert told(size) == [(64, True), (63, False), (63, False), (None, False)]
    ratio = judge(specs.AspectRatio(max_ratio=3), width=[300, 100, 301, 1, None], height=[100, 300, 100, 1, None])
    assert told(ratio) == [(3, True), (3, True), (3.01, False), (1, True), (None, False)]
    sharp = judge(specs.Sharpness(min_variance=20.1), sharpness=[20.1, 20.0, None])
    assert sharp.keeps.tolist() == [True, False, False]
    assert judge(specs.Entropy(min_bits=1.3), entropy=[1.3, 1.2, 0, None]).keeps.tolist() == [True, False, False, False]


def test_clip_score() -> None:
    found = judge(specs.ClipScore(min_cosine=0.7), clip_score=[0.7, 0.69, -0.7, None])
    assert found.keeps.tolist() == [True, False, False, False]
    assert judge(specs.ClipScore(min_cosine=-1), clip_score=[-1, None]).keeps.tolist() == [True, False]


def test_meta_number() -> None:
    values = [0.1, "0.12", " 0.5 ", 0.51, "NaN", float("nan"), "1e999", 10**400, "no", True, [1], None]
    rows = metas("p", *values)
    numbers = [0.1, 0.12, 0.5, 0.51] + [None] * 10
    found = judge(specs.MetaNumber(field="p", at_most=0.5), meta=rows)
    assert told(found) == list(zip(numbers, [True, True, True, False] + [True] * 10, strict=True))
    strict = judge(specs.MetaNumber(field="p", at_least=0.12, at_most=0.5, keep_missing=False), meta=rows)
    assert strict.keeps.tolist() == [False, True, True, False] + [False] * 10
    assert judge(specs.MetaNumber(field="p", keep_missing=False), meta=rows).keeps.sum() == 4


def test_meta_flag() -> None:
    rows = metas("NSFW", "UNLIKELY", " Unsure", "nsfw ", True, 1, False, 0, None)
    found = judge(specs.MetaFlag(field="NSFW", values=("unsure", "NSFW", "true", "1")), meta=rows)
    expected = [("UNLIKELY", True), (" Unsure", False), ("nsfw ", False), ("true", False), ("1", False)]
    assert told(found) == [*expected, ("false", True), ("0", True), (None, True), (None, True), (None, True)]


def test_meta_value() -> None:
    rows = metas("task", "animals", "Animals", " animals", 3, "3", True, ["animals"], "", None)
    told_as = ["animals", "Animals", " animals", "3", "3", "true", '["animals"]', "", None, None, None]
    found = judge(specs.MetaValue(field="task", values=("animals", "3")), meta=rows)
    kept = [True, False, False, True, True, False, False, False, False, False, False]
    assert told(found) == list(zip(told_as, kept, strict=True))
    found = judge(specs.MetaValue(field="task", values=("true",), absent="keep"), meta=rows)
    assert found.keeps.tolist() == [False] * 5 + [True] + [False] * 2 + [True] * 3
    with pytest.raises(ValueError, match="at least 1"):
        specs.MetaValue(field="task", values=())


@pytest.mark.parametrize("absent", ["keep", "drop"])
def test_tasks_of_a_stream_share_no_pair_and_leave_none_out(absent: str) -> None:
    rows = rows_of(200)
    tasks = [
        build_filter(specs.MetaValue(field="url", values=values, absent=absent)).judge(rows).keeps
        for values in (("a.com",), ("b",))
    ]
    without = rows["meta"].is_null().to_numpy()
    assert 0 < without.sum() < 200
    assert (tasks[0].astype(int) + tasks[1] == np.where(without, 2 if absent == "keep" else 0, 1)).all()


@pytest.mark.parametrize(
    ("url", "host", "kept"),
    [
        ("https://bad.com/a.jpg", "bad.com", False),
        ("HTTP://Cdn.BAD.com.:8080/a?x=/good.org", "cdn.bad.com", False),
        ("https://notbad.com/bad.com", "notbad.com", True),
        ("https://bad.com.good.org/", "bad.com.good.org", True),
        ("https://good.org@bad.com/", "bad.com", False),
        ("https://bad.com@x@good.org/", "good.org", True),
        ("//img.bad.com/a", "img.bad.com", False),
        ("bad.com:443/a", "bad.com", False),
        ("http://[::1]:80/a", "[::1]", True),
        ("http://[bad", "[bad", True),
        ("https://co.uk/", "co.uk", True),
        ("", None, True),
        ("https://", None, True),
        (7, None, True),
    ],
)
def test_url_domain(url: object, host: str | None, kept: bool) -> None:
    found = judge(specs.UrlDomain(domains=("BAD.com", ".x.co.uk")), meta=metas("url", url))
    assert told(found) == [(host, kept), (None, True), (None, True)]


EVERY: list[specs.Filter] = [
    specs.CaptionLength(min_words=3), specs.CaptionCharacters(min_letters_fraction=0.9), specs.CaptionRepetition(),
    specs.Language(), specs.Decodable(), specs.ImageSize(), specs.AspectRatio(), specs.Sharpness(), specs.Entropy(),
    specs.MetaNumber(field="p", at_least=0.5), specs.MetaFlag(field="f"),
    specs.MetaValue(field="f", values=("1",)), specs.UrlDomain(domains=("a.com",)),
    specs.ClipScore(),
]  # fmt: skip


def rows_of(count: int) -> pa.Table:
    draw = random.Random(0)

    def some(make, null=0.1):
        return [None if draw.random() < null else make() for _ in range(count)]

    return pa.table(
        {
            "caption": some(lambda: " ".join(draw.choices(["dog", "cat", "1", "ü!"], k=draw.randrange(7)))),
            "meta": some(
                lambda: json.dumps({"p": draw.random(), "f": draw.choice([0, 1]), "url": draw.choice(["a.com", "b"])})
            ),
            "problem": some(lambda: draw.choice(["", "unreadable"])),
            "language": some(lambda: draw.choice(["en", "de"])),
            "clip_score": pa.array(some(lambda: draw.uniform(0, 0.5)), pa.float32()),
            **{n: pa.array(some(lambda: draw.randrange(1, 200)), pa.int32()) for n in ("width", "height")},
            **{n: pa.array(some(lambda: draw.uniform(0, 1)), pa.float32()) for n in ("language_score",)},
            **{n: pa.array(some(lambda: draw.uniform(0, 40)), pa.float32()) for n in ("sharpness", "entropy")},
        }
    )


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec.filter)
def test_a_row_is_judged_by_itself(spec: specs.Filter) -> None:
    assert {each.filter for each in EVERY} == KINDS
    rows, made = rows_of(200), build_filter(spec)
    values, keeps = made.judge(rows)
    assert 0 < keeps.sum() < 200  # else the rest says nothing
    order = np.random.default_rng(0).permutation(200)
    permuted = made.judge(rows.take(order))
    assert permuted.keeps.tolist() == keeps[order].tolist() and permuted.values.equals(values.take(pa.array(order)))
    chunked = made.judge(pa.concat_tables([rows.slice(0, 3), rows.slice(3)]))
    assert chunked.keeps.tolist() == keeps.tolist() and chunked.values.equals(values)
    assert len(made.judge(rows.slice(0, 0)).keeps) == 0
