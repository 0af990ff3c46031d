"""Contrast between images and texts: InfoNCE (softmax) and SigLIP (sigmoid), with shared targets for equal captions.

Tiles give the loss to a pair's own column; what shared targets change is added to it, see `groups`.

Shapes: B pairs of this rank, G columns (of all ranks unless `gather` is local), D embed_dim.
"""

from torch import Tensor

from training import specs
from training.names import id_of
from training.objectives.base import Context, Loss, Names
from training.objectives.groups import Groups, Products, group_products, whole_products
from training.objectives.sigmoid import sigmoid_contrast
from training.objectives.softmax import softmax_contrast


class InfoNCE:
    """Mean of the row cross-entropies of both directions (CLIP, arXiv 2103.00020).

    Optionally smoothed or multi-positive.
    """

    def __init__(self, spec: specs.InfoNCE) -> None:
        self.spec = spec
        scale = {"logit_scale"} if spec.scale is None else set()
        self.needs = frozenset({spec.image, spec.text} | scale | ({id_of(spec.text)} if spec.multi_positive else set()))

    def __call__(self, names: Names, context: Context) -> Loss:
        """Cross-entropy to the (shared, smoothed) target rows."""
        spec = self.spec
        image, text = names[spec.image], names[spec.text]
        scale = names["logit_scale"] if spec.scale is None else image.new_tensor(spec.scale)
        value, parts = softmax_contrast(image, text, scale, context, spec.gather)
        smoothing, mean_scale = spec.label_smoothing, scale / len(image)
        if spec.multi_positive:
            groups = Groups.of_equal(names[id_of(spec.text)].to(image.device), context, spec.gather)
            if len(groups.sizes):
                products = group_products(groups, image, text, context, spec.gather)
                value, parts = spread(value, parts, mean_scale * (1 - smoothing), products, groups.sizes)
        if smoothing:
            columns = len(image) if context.is_alone(spec.gather) else len(image) * context.world_size
            products = whole_products(image, text, context, spec.gather)
            value, parts = spread(value, parts, mean_scale * smoothing, products, columns)
        return Loss(value, parts)


def spread(
    value: Tensor, parts: dict[str, Tensor], factor: Tensor, products: Products, sizes: Tensor | int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its two directions with a share of the targets moved from own columns to groups' means.

    Cross-entropy to targets t is log-sum-exp - t . similarities, so it gains own similarity - mean of the group's.
    """
    more = {
        "i2t": factor * (products.matched - (products.i2t / sizes).sum()),
        "t2i": factor * (products.matched - (products.t2i / sizes).sum()),
    }
    return value + sum(more.values()) / 2, {key: part + more[key].detach() for key, part in parts.items()}


class SigLIP:
    """Sigmoid loss over all pairs of rows and columns, per row (arXiv 2303.15343, algorithm 1)."""

    def __init__(self, spec: specs.SigLIP) -> None:
        self.spec = spec
        needs = {"image_features", "text_features", "logit_scale", "logit_bias"}
        self.needs = frozenset(needs | ({"text_id"} if spec.multi_positive else set()))

    def __call__(self, names: Names, context: Context) -> Loss:
        """-log sigmoid(label * logit), summed over columns, mean over rows; label is 1 for positives, else -1."""
        spec = self.spec
        image, text, scale, bias = (
            names[key] for key in ("image_features", "text_features", "logit_scale", "logit_bias")
        )
        value = sigmoid_contrast(image, text, scale, bias, context, spec.gather)
        if spec.multi_positive:
            groups = Groups.of_equal(names["text_id"].to(image.device), context, spec.gather)
            if len(groups.sizes):
                products = group_products(groups, image, text, context, spec.gather)
                # -log sigmoid(x) = -log sigmoid(-x) - x: a twin's column leaves its logit
                twins = (groups.own_sizes * (groups.sizes - 1)).sum()
                value = value - (scale * (products.i2t.sum() - products.matched) + bias * twins) / len(image)
        return Loss(value, {})
