"""From similarities to logits, probabilities, and one score a picture that says how strange it looks.

All in float64: two pictures with equal features then get equal scores, up to rounding that is cut off.
Legend: B pictures of a block, N pictures of a fit, C classes, D embedding.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import entr, logsumexp

from data.features import Floats
from evaluation.rows import Doubles, Ints
from evaluation.specs import Score

# Equal vectors differ by some 1e-15 in a float64 product, so their probabilities by 1e-13 of themselves: scores keep
# 26 bits (1.5e-8), as many as float32 features are worth, and equal pictures tie.
_KEPT = float(1 << 26)
_BLOCK_SCORES = 1 << 20
# spread of the logits after scaling: below, all classes are as likely; above, the best has all
_SPREADS = (1e-2, 1e4)


def cosines(images_BD: Floats, classes_CD: Floats) -> Doubles:
    """Similarities (B, C) in float64."""
    return np.asarray(images_BD, np.float64) @ np.asarray(classes_CD, np.float64).T


def softmax(logits_BC: Doubles) -> Doubles:
    """Probabilities (B, C)."""
    shifted_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    return np.asarray(shifted_BC / shifted_BC.sum(axis=1, keepdims=True))


def log_likelihoods(logits_BC: Doubles, labels_B: Ints) -> Doubles:
    """Log of the probability (B,) of the right class, in nats; finite however sure the model is."""
    own_B = np.take_along_axis(logits_BC, labels_B[:, None], axis=1)[:, 0]
    return np.asarray(own_B - logsumexp(logits_BC, axis=1))


def out_scores(cosines_BC: Doubles, scale: float, names: Sequence[Score]) -> dict[str, Doubles]:
    """Scores (B,) of zero-shot logits `scale` times the cosine, higher for what looks more out of distribution.

    msp: 1 - the largest probability. entropy: of the probabilities, nats. mcm: 1 - the largest softmax of the cosines
    themselves, temperature 1 (Ming et al. 2022). energy: minus logsumexp of the logits (Liu et al. 2020).
    """
    found = probability_scores(softmax(scale * cosines_BC))
    found["mcm"] = probability_scores(softmax(cosines_BC))["msp"]
    found["energy"] = _rounded(-logsumexp(scale * cosines_BC, axis=1))
    return {name: found[name] for name in names}


def probability_scores(probabilities_BC: Doubles) -> dict[str, Doubles]:
    """msp and entropy (B,) of any probabilities.

    1 - the largest is summed from the others: sure pictures, whose largest is 1 in float64, keep their order.
    """
    others_BC = probabilities_BC.copy()
    np.put_along_axis(others_BC, others_BC.argmax(axis=1, keepdims=True), 0, axis=1)
    return {"msp": _rounded(others_BC.sum(axis=1)), "entropy": _rounded(entr(probabilities_BC).sum(axis=1))}


def fitted_temperature(logits_NC: Doubles, labels_N: Ints) -> float:
    """The T > 0 that makes the mean of -log softmax(logits / T) of the right classes least (Guo et al. 2017).

    The loss is convex in 1 / T, so its slope has one root. Where it has none (all right: T would be 0; worse than
    chance: infinite) T stops where the mean range of a picture's logits / T is 1e4 or 1e-2. Logits times a give T
    times a.
    """
    spread = float((logits_NC.max(axis=1) - logits_NC.min(axis=1)).mean())
    if spread == 0:
        return 1.0

    def slope(log_spread: float) -> float:
        inverse = np.exp(log_spread) / spread
        return sum(_slope(logits_NC[rows], labels_N[rows], inverse) for rows in blocks)

    block = max(1, _BLOCK_SCORES // logits_NC.shape[1])
    blocks = [slice(at, at + block) for at in range(0, len(logits_NC), block)]
    least, most = (float(np.log(end)) for end in _SPREADS)
    if slope(least) >= 0:
        return spread / _SPREADS[0]
    if slope(most) <= 0:
        return spread / _SPREADS[1]
    return float(spread / np.exp(brentq(slope, least, most, xtol=1e-12)))


def _slope(logits_BC: Doubles, labels_B: Ints, inverse: float) -> float:
    """Slope of the summed loss by 1 / T: expected minus right logit."""
    expected_B = (softmax(logits_BC * inverse) * logits_BC).sum(axis=1)
    return float((expected_B - np.take_along_axis(logits_BC, labels_B[:, None], axis=1)[:, 0]).sum())


def _rounded(scores_B: Doubles) -> Doubles:
    mantissa_B, exponent_B = np.frexp(scores_B)
    return np.asarray(np.ldexp(np.round(mantissa_B * _KEPT) / _KEPT, exponent_B))
