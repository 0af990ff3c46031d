"""How results are called on a page: metrics, directions and what a value of a headline means in a sentence."""

import re
from typing import Any

_DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}
_SHORT = {
    "top1": "top-1", "top5": "top-5", "map": "mAP", "miou": "mIoU", "ece": "ECE", "nll": "NLL",
    "auroc": "AUROC", "fpr95": "FPR95", "cab": "CAB", "msp": "MSP", "mcm": "MCM", "f1": "F1",
}  # fmt: skip
_ANSWERS = {"image_retrieval": ("another picture of its label", "pictures")}  # where no direction says it


def words(name: str) -> str:
    """A name as words: `unseen_vendor` -> `unseen vendor`."""
    return name.replace("_", " ")


def direction(name: str) -> str:
    """A direction as a reader says it: `image_to_text` -> `image → text`."""
    return _DIRECTIONS.get(name, words(name))


def metric_label(metric: str, way: str = "") -> str:
    """A metric as a column head, without its direction: `image_to_text_R@10` -> `R@10`, `auroc_msp` -> `AUROC MSP`."""
    for name in (*_DIRECTIONS, *filter(None, [way])):
        metric = metric.removeprefix(f"{name}_")
    shots = re.fullmatch(r"top1_at_(\d+)", metric)
    if shots:
        return f"top-1, {shots[1]} shot{'s' if int(shots[1]) > 1 else ''}"
    parts = metric.split("=") if "=" in metric else [metric]
    return " = ".join(" ".join(_SHORT.get(word, word) for word in part.split("_")) for part in parts)


def metric_name(metric: str) -> str:
    """A metric with its direction, where it has one: `image → text R@10`."""
    found = next((name for name in _DIRECTIONS if metric.startswith(f"{name}_")), "")
    return f"{direction(found)} {metric_label(metric)}".strip()


def sentence(row: dict[str, Any]) -> tuple[str, str]:
    """What a value of this entry means, as words before and after the value."""
    metric, way = row["metric"], row["direction"]
    among = re.fullmatch(r"(?:image_to_text_|text_to_image_)?(?:R@|top)(\d+)", metric)
    if metric.endswith("median_rank"):
        return "half of the queries find a right answer within rank", ""
    if metric == "mean_per_class_recall":
        return "the right class comes first for", "of the pictures, classes weighted equally"
    if among:
        first = "first" if among[1] == "1" else f"among the first {among[1]}"
        what, of = {
            "image_to_text": ("the right caption", "pictures"),
            "text_to_image": ("a right picture", "captions"),
        }.get(way, _ANSWERS.get(row.get("kind", ""), ("the right class", "pictures")))
        return f"{what} comes {first} for", f"of the {of}"
    return f"{metric_label(metric)} of {words(row['task'])} is", ""
