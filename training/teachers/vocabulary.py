"""Texts that a teacher embeds once, beside the batch: VR-LwF's replayed vocabulary (arXiv 2207.09248).

Shapes: V texts, L context length.
"""

import torch
from torch import Tensor

from data.errors import ModelError
from training.specs import GivenTexts, RandomTokens, Vocabulary
from training.towers import Towers


def token_ids(spec: Vocabulary, towers: Towers) -> Tensor:
    """(V, L) token ids of a vocabulary for these towers.

    Raises:
        ModelError: texts of random tokens do not fit the context, or the tokenizer is not of CLIP's kind.
    """
    if isinstance(spec, GivenTexts):
        ids: Tensor = towers.tokenizer(list(spec.texts))
        return ids
    return _random_ids(spec, towers)


def _random_ids(spec: RandomTokens, towers: Towers) -> Tensor:
    tokenizer = towers.tokenizer
    start, end = (getattr(tokenizer, name, None) for name in ("sot_token_id", "eot_token_id"))
    length = int(tokenizer.context_length)
    if start is None or end is None:
        raise ModelError("vocabulary random_tokens: needs CLIP's tokenizer with start and end; give texts of your own")
    if spec.tokens + 2 > length:
        raise ModelError(f"vocabulary random_tokens: {spec.tokens} tokens and two more exceed a context of {length}")
    random = torch.Generator().manual_seed(spec.seed)
    highest = min(start, end) if spec.safe else tokenizer.vocab_size  # start and end are the last two ids
    ids_VL = torch.zeros(spec.texts, length, dtype=torch.int64)
    ids_VL[:, 0], ids_VL[:, 1 + spec.tokens] = start, end
    ids_VL[:, 1 : 1 + spec.tokens] = torch.randint(1, highest, (spec.texts, spec.tokens), generator=random)
    return ids_VL
