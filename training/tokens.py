"""Captions to token ids: open_clip's own tokenizer, with its costly parts left out where they change nothing.

Shapes: B captions, L tokens.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

_CAPTIONS_KEPT, _WORDS_KEPT = 1 << 15, 1 << 17


class CaptionTokens:
    """Token ids of captions, equal to the tokenizer's; what was tokenized lately is kept."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is open_clip's for the text tower: texts -> (B, L)."""
        self.tokenizer = tokenizer
        simple = type(tokenizer) is SimpleTokenizer and tokenizer.reduction_fn is None
        self._row = lru_cache(_CAPTIONS_KEPT)(self._simple_row if simple else self._any_row)
        self._word = lru_cache(_WORDS_KEPT)(self._word_ids)
        self._lowers = simple and tokenizer.clean_fn is get_clean_fn("lower")

    def __call__(self, captions: Sequence[str]) -> npt.NDArray[np.int64]:
        """(B, L) token ids."""
        return np.stack([self._row(caption) for caption in captions])

    def _any_row(self, caption: str) -> npt.NDArray[np.int64]:
        return np.asarray(torch.as_tensor(self.tokenizer([caption])[0]).numpy(), np.int64)

    def _simple_row(self, caption: str) -> npt.NDArray[np.int64]:
        tokenizer, row = self.tokenizer, np.zeros(self.tokenizer.context_length, np.int64)
        # no token spans a space, so that a caption's ids are its words' ids in a row
        ids = [id_ for word in self._cleaned(caption).split(" ") for id_ in self._word(word)][: len(row) - 2]
        row[0], row[1 : 1 + len(ids)], row[1 + len(ids)] = tokenizer.sot_token_id, ids, tokenizer.eot_token_id
        return row

    def _cleaned(self, caption: str) -> str:
        # mojibake and HTML entities, which cleaning repairs, need another character
        if self._lowers and caption.isascii() and caption.isprintable() and "&" not in caption:
            return " ".join(caption.split()).lower()
        return str(self.tokenizer.clean_fn(caption))

    def _word_ids(self, word: str) -> tuple[int, ...]:
        tokenizer = self.tokenizer
        parts = ("".join(tokenizer.byte_encoder[b] for b in part.encode()) for part in tokenizer.pat.findall(word))
        return tuple(tokenizer.encoder[piece] for part in parts for piece in tokenizer.bpe(part).split(" "))
