"""The same numbers as CLIP_benchmark and scikit-learn from the same features; and every difference, stated.

CLIP_benchmark's own functions run on a model that looks its features up. Where definitions agree, values agree to 1e-6.
"""

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval
from sklearn.metrics import average_precision_score, balanced_accuracy_score, top_k_accuracy_score

from data.errors import EvaluationError
from evaluation.bootstrap import estimate
from evaluation.specs import Bootstrap, CaptionSelection, PairedSelection, Retrieval, ZeroShot
from training.specs import Prompts

TEMPLATES = ("{c}", "a photo of a {c}", "a drawing of a {c}")
EXACT = 1e-6
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn")


class Table:
    """A model whose pictures are rows of one table and whose texts are rows of another."""

    def __init__(self, images, texts):
        self.images = torch.as_tensor(np.asarray(images), dtype=torch.float32)
        self.texts = torch.as_tensor(np.asarray(list(texts.values())), dtype=torch.float32)
        self.row = {text: row for row, text in enumerate(texts)}

    def encode_image(self, pictures):
        """A picture is its number."""
        return self.images[pictures.flatten().long()]

    def encode_text(self, tokens):
        return self.texts[tokens]

    def tokenizer(self, texts):
        return torch.tensor([self.row[text] for text in texts])


class Loader(list):
    """Batches of (pictures, targets), with the data set that CLIP_benchmark asks for its classes."""

    def __init__(self, targets, batch=7, classes=(), shape=()):
        numbers = torch.arange(len(targets)).reshape(-1, *shape)
        super().__init__((numbers[at : at + batch], targets[at : at + batch]) for at in range(0, len(targets), batch))
        self.dataset = self
        self.classes = list(classes)


def their_zero_shot(images, texts, targets, classes, templates=TEMPLATES):
    model = Table(images, texts)
    loader = Loader(torch.as_tensor(np.asarray(targets)), classes=classes)
    # their templates are filled by str.format, ours by replacing {c}: the same for these
    return zeroshot_classification.evaluate(
        model, loader, model.tokenizer, list(classes), list(templates), "cpu", amp=False
    )


def their_retrieval(images, texts, captions, ks):
    model = Table(images, texts)
    return zeroshot_retrieval.evaluate(model, Loader(captions), model.tokenizer, "cpu", amp=False, recall_k_list=ks)


@pytest.fixture
def ours(made, tmp_path):
    """Metric -> value of our task on the same vectors; `labels` are metadata `kind`, `captions` of source alt."""

    def scored(spec, images, texts, labels=None, captions=None, wrong=None, metas=None):
        entries = []
        for i in range(len(images)):
            sources = [("alt", caption) for caption in (captions[i] if captions is not None else ())]
            sources += [("wrong", caption) for caption in (wrong[i] if wrong else ())]
            meta = {"kind": labels[i]} if labels is not None else dict(metas[i]) if metas else {}
            entries.append(made.Entry(f"u{i:05d}", "test", meta, sources))
        pairs = made.Made(tmp_path, entries)
        # the embed stage writes features of length 1
        directions = {text: made.unit(vector) if np.any(vector) else vector for text, vector in texts.items()}
        features = pairs.features(made.unit(images), directions)
        answers = [a for a in spec.build()(spec, made.subject_of(pairs.data(features))) if not a.baseline]
        found = {
            metric.name: one.value
            for answer in answers
            for metric, one in zip(answer.metrics, estimate(answer.rows, answer.metrics, BOOTSTRAP), strict=True)
        }
        return found, {answer.rows.direction: answer.rows for answer in answers}

    return scored


BOOTSTRAP = Bootstrap(resamples=100)


def torch_accuracy(output, target, topk=(1,)):
    """What clip_benchmark 1.6.2's own does, by torch.topk as there."""
    hits = output.topk(max(topk), 1, True, True)[1] == target[:, None]
    return [hits[:, :k].any(dim=1).double().mean().item() for k in topk]


@pytest.fixture(autouse=True)
def clip_benchmark_on_new_numpy(monkeypatch):
    # its own calls float() on an array of one element, which numpy 2.4 and later refuse
    monkeypatch.setattr(zeroshot_classification, "accuracy", torch_accuracy)


def classification(classes=11, count=400, dim=24, seed=0, signal=0.35):
    """Pictures, class texts in every template, and labels; vectors of any length, classes of any size."""
    random = np.random.default_rng(seed)
    names = [f"thing {i}" for i in range(classes)]
    centres = random.normal(size=(classes, dim))
    labels = random.choice(classes, count, p=random.dirichlet(np.full(classes, 1.5)))
    images = signal * centres[labels] + random.normal(size=(count, dim))
    texts = {
        template.replace("{c}", name): random.uniform(0.2, 9) * (centres[c] + random.normal(size=dim))
        for c, name in enumerate(names) for template in TEMPLATES
    }  # fmt: skip
    return names, labels, images * random.uniform(0.5, 3, (count, 1)), texts


def zero_shot(names, templates=TEMPLATES):
    return ZeroShot(prompts=Prompts(field="kind", templates=templates, classes=tuple(names)))


# ------------------------------------------------------------------------------------------------------ what is equal


@pytest.mark.parametrize(("classes", "seed"), [(11, 0), (6, 1), (40, 2)])
def test_zero_shot_equals_clip_benchmark(ours, classes, seed):
    names, labels, images, texts = classification(classes, seed=seed)
    theirs = their_zero_shot(images, texts, labels, names)
    found, _ = ours(zero_shot(names), images, texts, labels.tolist())
    assert found["top1"] == pytest.approx(theirs["acc1"], abs=EXACT)
    assert found["top5"] == pytest.approx(theirs["acc5"], abs=EXACT)
    assert found["mean_per_class_recall"] == pytest.approx(theirs["mean_per_class_recall"], abs=EXACT)
    assert 0.15 < found["top1"] < 0.95  # neither trivially right nor wrong


def test_zero_shot_equals_scikit_learn(ours, made):
    names, labels, images, texts = classification()
    found, rows = ours(zero_shot(names), images, texts, labels.tolist())
    weights = made.unit([sum(made.unit(texts[t.replace("{c}", name)]) for t in TEMPLATES) for name in names])
    scores = made.unit(images) @ weights.T
    for name, k in (("top1", 1), ("top5", 5)):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(len(names)))
        assert found[name] == pytest.approx(expected, abs=EXACT)
    expected = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert found["mean_per_class_recall"] == pytest.approx(expected, abs=EXACT)
    assert rows[""].predictions == [names[c] for c in scores.argmax(axis=1)]


def test_class_features_equal_clip_benchmark(made, tmp_path):
    names, _, images, texts = classification()
    model = Table(images, texts)
    theirs = zeroshot_classification.zero_shot_classifier(
        model, model.tokenizer, names, list(TEMPLATES), "cpu", amp=False
    )
    pairs = made.Made(tmp_path, [made.Entry("u", "test", {"kind": 0})])
    data = pairs.data(pairs.features(images[:1], {text: made.unit(vector) for text, vector in texts.items()}))
    found = data.class_features(zero_shot(names).prompts)
    assert found == pytest.approx(theirs.T.numpy(), abs=EXACT)
    # not the mean of vectors of any length: those of this test differ by a factor of up to 45
    plain = made.unit([sum(texts[t.replace("{c}", name)] for t in TEMPLATES) for name in names])
    assert np.abs(found - plain).max() > 0.05


@pytest.mark.parametrize("each", [1, 5])
def test_retrieval_equals_clip_benchmark(ours, each):
    random = np.random.default_rng(3)
    images = random.normal(size=(60, 16))
    captions = [[f"caption {i} {j}" for j in range(each)] for i in range(60)]
    texts = {text: 0.5 * images[i] + random.normal(size=16) for i, own in enumerate(captions) for text in own}
    theirs = their_retrieval(images, texts, captions, [1, 5, 10])
    found, _ = ours(Retrieval(ks=(1, 5, 10)), images, texts, captions=captions)
    for k in (1, 5, 10):
        assert found[f"image_to_text_R@{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=EXACT)
        assert found[f"text_to_image_R@{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=EXACT)
    assert 0.1 < found["image_to_text_R@1"] < 0.95
    assert found["image_to_text_R@5"] != found["text_to_image_R@5"]


def test_retrieval_equals_clip_benchmark_with_other_numbers_of_captions(ours):
    random = np.random.default_rng(4)
    images = random.normal(size=(40, 12))
    captions = [[f"caption {i} {j}" for j in range(1 + i % 4)] for i in range(40)]
    texts = {text: 0.4 * images[i] + random.normal(size=12) for i, own in enumerate(captions) for text in own}
    theirs = their_retrieval(images, texts, captions, [3])
    found, _ = ours(Retrieval(ks=(3,)), images, texts, captions=captions)
    assert found["image_to_text_R@3"] == pytest.approx(theirs["text_retrieval_recall@3"], abs=EXACT)
    assert found["text_to_image_R@3"] == pytest.approx(theirs["image_retrieval_recall@3"], abs=EXACT)


def multi_label(classes=9, count=200, seed=5):
    names, labels, images, texts = classification(classes, count, seed=seed)
    truth = np.random.default_rng(seed).random((count, classes)) < 0.15
    truth[np.arange(count), labels] = True
    return names, truth, images, texts, [[names[c] for c in np.flatnonzero(row)] for row in truth]


def test_map_equals_clip_benchmark_and_scikit_learn(ours, made):
    names, truth, images, texts, own = multi_label()
    theirs = their_zero_shot(images, texts, truth.astype(np.int64), names)
    found, _ = ours(zero_shot(names), images, texts, own)
    assert found["mAP"] == pytest.approx(theirs["mean_average_precision"], abs=EXACT)
    weights = made.unit([sum(made.unit(texts[t.replace("{c}", name)]) for t in TEMPLATES) for name in names])
    scores = made.unit(images) @ weights.T
    expected = average_precision_score(truth, scores, average="macro")
    assert found["mAP"] == pytest.approx(expected, abs=EXACT)


def test_caption_selection_equals_clip_benchmark(ours):
    random = np.random.default_rng(6)
    images = random.normal(size=(80, 10))
    right, wrong = [[f"right {i}"] for i in range(80)], [[f"wrong {i}"] for i in range(80)]
    texts = {right[i][0]: images[i] + 2 * random.normal(size=10) for i in range(80)}
    texts |= {wrong[i][0]: random.normal(size=10) for i in range(80)}
    model = Table(images, texts)
    both = [[*right[i], *wrong[i]] for i in range(80)]
    theirs = image_caption_selection.evaluate(model, Loader(both, shape=(1, 1, 1)), model.tokenizer, "cpu", amp=False)
    found, _ = ours(CaptionSelection(wrong=("wrong",)), images, texts, captions=right, wrong=wrong)
    assert found["caption_accuracy"] == pytest.approx(theirs["text_acc"], abs=EXACT)
    assert theirs["image_acc"] == 1  # of one picture each: no metric of ours


def test_winoground_equals_clip_benchmark_where_nothing_ties(ours):
    random = np.random.default_rng(7)
    items = 120
    images = random.normal(size=(2 * items, 6))
    captions = [[f"caption {i}"] for i in range(2 * items)]
    texts = {captions[i][0]: 0.5 * images[i] + random.normal(size=6) for i in range(2 * items)}
    model = Table(images, texts)
    numbers = torch.arange(2 * items).reshape(items, 2, 1, 1, 1)
    pairs = [[captions[2 * i][0], captions[2 * i + 1][0]] for i in range(items)]
    theirs = image_caption_selection.evaluate(model, [(numbers, pairs)], model.tokenizer, "cpu", amp=False)
    metas = [{"item": f"item {i // 2}"} for i in range(2 * items)]
    found, _ = ours(PairedSelection(), images, texts, captions=captions, metas=metas)
    # their names are the other way round: `text_acc` asks which text is closest to each picture, as Winoground's text
    assert found["text_score"] == pytest.approx(theirs["text_acc"], abs=EXACT)
    assert found["image_score"] == pytest.approx(theirs["image_acc"], abs=EXACT)
    assert found["group_score"] == pytest.approx(theirs["acc"], abs=EXACT)
    assert len({found["text_score"], found["image_score"], found["group_score"]}) == 3


# ---------------------------------------------------------------------------------------- what is different, on purpose


def constant(texts, count, dim=8):
    return np.ones((count, dim)), dict.fromkeys(texts, np.ones(dim))


def filled(names):
    return [template.replace("{c}", name) for name in names for template in TEMPLATES]


def test_a_constant_model_is_credited_by_theirs_and_not_by_ours(ours):
    names = [f"thing {i}" for i in range(8)]
    images, texts = constant(filled(names), 50)
    theirs = [their_zero_shot(images, texts, np.full(50, label), names) for label in range(8)]
    assert theirs[0]["mean_per_class_recall"] == 1  # argmax takes the first
    assert max(one["acc1"] for one in theirs) == 1  # topk takes one of them, not always the first
    assert sum(one["acc5"] for one in theirs) == 5
    found, rows = ours(zero_shot(names), images, texts, [0] * 50)
    assert found["top1"] == found["top5"] == found["mean_per_class_recall"] == 0
    assert rows[""].ties == 50


def test_a_constant_model_solves_sugarcrepe_by_theirs_and_not_by_ours(ours):
    right, wrong = [[f"right {i}"] for i in range(30)], [[f"wrong {i}"] for i in range(30)]
    images, texts = constant([text for own in [*right, *wrong] for text in own], 30)
    model = Table(images, texts)
    both = [[*right[i], *wrong[i]] for i in range(30)]
    theirs = image_caption_selection.evaluate(model, Loader(both, shape=(1, 1, 1)), model.tokenizer, "cpu", amp=False)
    assert theirs["text_acc"] == theirs["acc"] == 1
    found, rows = ours(CaptionSelection(wrong=("wrong",)), images, texts, captions=right, wrong=wrong)
    assert found["caption_accuracy"] == 0
    assert rows[""].ties == 30


def test_equal_captions_are_wrong_answers_in_theirs_and_one_caption_in_ours(ours):
    # ten pictures of two animals, each exactly where its caption is: nothing could be found better
    captions = [["cat"]] * 5 + [["dog"]] * 5
    images = np.repeat(np.eye(2), 5, axis=0)
    texts = {"cat": [1.0, 0], "dog": [0, 1.0]}
    theirs = their_retrieval(images, texts, captions, [1])
    assert theirs["image_retrieval_recall@1"] == theirs["text_retrieval_recall@1"] == pytest.approx(1 / 5)
    found, rows = ours(Retrieval(ks=(1,)), images, texts, captions=captions)
    assert found["image_to_text_R@1"] == found["text_to_image_R@1"] == 1
    assert (len(rows["image_to_text"]), len(rows["text_to_image"])) == (10, 2)


def test_what_is_not_a_number_is_a_score_in_theirs_and_an_error_in_ours(ours):
    names, labels, images, texts = classification()
    images[:] = np.nan
    theirs = their_zero_shot(images, texts, np.zeros_like(labels), names)
    assert theirs["mean_per_class_recall"] == 1
    with pytest.raises(EvaluationError, match=r"^uid 'u00000': its feature is not finite"):
        ours(zero_shot(names), images, texts, [0] * len(labels))


def test_five_of_five_classes_is_a_metric_of_theirs_only(ours):
    names, labels, images, texts = classification(5)
    assert their_zero_shot(images, texts, labels, names)["acc5"] == 1
    found, _ = ours(zero_shot(names), images, texts, labels.tolist())
    assert "top5" not in found


def test_a_class_without_pictures_counts_in_neither_recall(ours):
    names, labels, images, texts = classification()
    kept = labels != 3
    theirs = their_zero_shot(images[kept], texts, labels[kept], names)
    found, _ = ours(zero_shot(names), images[kept], texts, labels[kept].tolist())
    assert found["mean_per_class_recall"] == pytest.approx(theirs["mean_per_class_recall"], abs=EXACT)


def test_a_class_without_positives_counts_as_nothing_in_their_map_and_not_at_all_in_ours(ours):
    names, truth, images, texts, own = multi_label()
    truth[:, 2] = False
    own = [[name for name in names_ if name != names[2]] or [names[0]] for names_ in own]
    truth[~truth.any(axis=1), 0] = True
    theirs = their_zero_shot(images, texts, truth.astype(np.int64), names)
    found, _ = ours(zero_shot(names), images, texts, own)
    assert found["mAP"] == pytest.approx(theirs["mean_average_precision"] * len(names) / (len(names) - 1), abs=EXACT)


def test_tied_scores_are_ordered_by_luck_in_their_map_and_found_together_in_ours(ours):
    names = ["a", "b", "c"]
    images, texts = constant(filled(names), 20)
    truth = np.zeros((20, 3), np.int64)
    truth[:5, 0], truth[15:, 1], truth[5:15, 2] = 1, 1, 1
    by_luck = zeroshot_classification.average_precision_per_class(
        torch.zeros(20, 3), torch.as_tensor(truth)[torch.arange(20)]
    )
    assert len({round(value, 3) for value in by_luck.tolist()}) > 1  # classes with 5, 5 and 10 of 20, all scored alike
    assert by_luck[0] != pytest.approx(0.25, abs=0.05) or by_luck[1] != pytest.approx(0.25, abs=0.05)
    own = [[names[c] for c in np.flatnonzero(row)] for row in truth]
    found, _ = ours(zero_shot(names), images, texts, own)
    assert found["mAP"] == pytest.approx((0.25 + 0.25 + 0.5) / 3, abs=EXACT)
