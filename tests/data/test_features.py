"""Feature sets: rows belong to uids and texts, and what is no number never becomes one in a report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import storage
from data.artifacts import Artifact, Record
from data.errors import ArtifactError
from data.features import CONTENT, FeatureSet, write_features

IMAGES = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
TEXTS = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float64)


def written(uri: str) -> FeatureSet:
    write_features(uri, ["a", "b"], IMAGES, ["one", "two", "röd"], TEXTS)  # type: ignore[arg-type]
    record = Record(kind="feature_set", stage="embed", revision=1, fingerprint="0" * 64, config={})
    return FeatureSet(Artifact(uri, record))


@pytest.mark.parametrize("place", ["local", "memory"])
def test_features_come_back_as_float32_in_row_order(tmp_path: Path, place: str) -> None:
    features = written(str(tmp_path) if place == "local" else f"memory://features/{tmp_path.name}")
    assert features.uids == ["a", "b"]
    assert features.texts == ["one", "two", "röd"]
    np.testing.assert_array_equal(features.images, IMAGES)
    np.testing.assert_array_equal(features.text_features, TEXTS)
    assert features.images.dtype == features.text_features.dtype == np.float32


def test_on_a_path_rows_are_mapped_not_read(tmp_path: Path) -> None:
    features = written(str(tmp_path))
    assert isinstance(features.images, np.memmap)
    assert not features.images.flags.writeable


def test_rows_are_looked_up_by_uid_and_by_the_text_itself(tmp_path: Path) -> None:
    features = written(str(tmp_path))
    assert features.image_rows(["b", "a", "b"]).tolist() == [1, 0, 1]
    assert features.text_rows(["röd", "one"]).tolist() == [2, 0]
    assert features.image_rows([]).tolist() == []


def test_what_was_not_embedded_is_named(tmp_path: Path) -> None:
    features = written(str(tmp_path))
    with pytest.raises(ArtifactError, match="text 'three' was not embedded; add it to the embed stage") as error:
        features.text_rows(["one", "three", "four"])
    assert "\n" not in str(error.value)
    with pytest.raises(ArtifactError, match="uid 'z' was not embedded"):
        features.image_rows(["z"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["image", "text"])
def test_features_that_are_not_finite_are_refused_and_not_written(tmp_path: Path, bad: float, which: str) -> None:
    images, texts = IMAGES.copy(), TEXTS.astype(np.float32)
    (images if which == "image" else texts)[1, 2] = bad
    name = "uid 'b'" if which == "image" else "text 'two'"
    with pytest.raises(ArtifactError, match=f"feature of {name} is not finite"):
        write_features(str(tmp_path), ["a", "b"], images, ["one", "two", "röd"], texts)
    assert not storage.exists(str(tmp_path / f"{which}s.npy"))


def test_no_pairs_and_no_texts_are_an_empty_feature_set(tmp_path: Path) -> None:
    none = np.empty((0, 3), np.float32)
    write_features(str(tmp_path), [], none, [], none)
    features = FeatureSet(Artifact(str(tmp_path), written(str(tmp_path / "other")).artifact.record))
    assert features.images.shape == features.text_features.shape == (0, 3)
    assert features.uids == []


def looked_at(uri: str) -> FeatureSet:
    """Two pictures with a view and checksums."""
    write_features(uri, ["a", "b"], IMAGES, [], TEXTS[:0], {"fog": IMAGES[::-1]}, [b"x" * 16, b"y" * 16])  # type: ignore[arg-type]
    record = Record(kind="feature_set", stage="embed", revision=2, fingerprint="0" * 64, config={})
    return FeatureSet(Artifact(uri, record.model_copy(update={"metrics": {"logit_scale": 7.0, "logit_bias": -2.0}})))


def test_a_view_has_the_rows_of_the_pictures(tmp_path: Path) -> None:
    features = looked_at(str(tmp_path))
    assert features.views == ("fog",)
    assert isinstance(features.view("fog"), np.memmap)
    np.testing.assert_array_equal(features.view("fog"), IMAGES[::-1])
    with pytest.raises(ArtifactError, match=r"has no view 'fogg'; did you mean 'fog'\?$"):
        features.view("fogg")
    assert written(str(tmp_path / "plain")).views == ()


def test_checksums_come_in_the_order_asked_for(tmp_path: Path) -> None:
    features = looked_at(str(tmp_path))
    contents = features.contents(["b", "a"])
    assert contents is not None
    assert (contents.type, contents.to_pylist()) == (CONTENT, [b"y" * 16, b"x" * 16])
    with pytest.raises(ArtifactError, match="uid 'z' was not embedded"):
        features.contents(["a", "z"])
    assert written(str(tmp_path / "plain")).contents(["a"]) is None


def test_a_set_of_views_says_what_it_lacks(tmp_path: Path) -> None:
    features = looked_at(str(tmp_path))
    storage.remove(str(tmp_path / "images.npy"))
    with pytest.raises(ArtifactError, match="has views only, not the pictures as they are"):
        _ = features.images
    np.testing.assert_array_equal(features.view("fog")[features.image_rows(["b"])], IMAGES[:1])
    assert features.patches is None


def test_temperature_and_bias_are_the_records(tmp_path: Path) -> None:
    features, without = looked_at(str(tmp_path)), written(str(tmp_path / "plain"))
    assert (features.logit_scale, features.logit_bias) == (7.0, -2.0)
    assert (without.logit_scale, without.logit_bias) == (100.0, 0.0)


def test_rows_are_a_mapping_that_knows_what_it_lacks(tmp_path: Path) -> None:
    features = written(str(tmp_path))
    assert dict(features.text_row) == {"one": 0, "two": 1, "röd": 2}
    assert "three" not in features.text_row
    assert None not in features.text_row
    assert features.embedded(["z", "b", "y", "a"]) == ["b", "a"]
    with pytest.raises(KeyError):
        features.image_row["z"]


def test_on_s3_a_copy_is_mapped_and_leaves_no_file(
    tmp_path: Path, seaweed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    features = looked_at(f"s3://{seaweed.bucket}/features")
    assert isinstance(features.images, np.memmap)
    np.testing.assert_array_equal(features.images, IMAGES)
    np.testing.assert_array_equal(features.view("fog"), IMAGES[::-1])
    assert list(tmp_path.iterdir()) == []
