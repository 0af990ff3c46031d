"""Masked words told from the words before them and the picture: LightCLIP's training-only decoder (arXiv 2312.00674).

The text tower reads the caption a second time, some of its words hidden; after its last blocks the words attend to the
picture's patches. The paper's equations are unverified: the place of the fusion, its heads, a learned stand-in for a
hidden word (CLIP's vocabulary has none), and the tower's causal mask, kept, are ours.
Shapes: B pairs, P patches, L text tokens, W width of the text tower, V words.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.errors import ModelError
from training.specs import MaskedLanguage
from training.surgeries.aids import Aid, attach, seeded
from training.surgeries.base import Check, Phases, random_inputs
from training.surgeries.tokens import features_stay
from training.towers import Towers

NO_TARGET = -100
_NAME = "masked_language"
_HIDDEN, _REPLACED = 0.8, 0.1  # of the chosen words; the rest is left as it is (BERT, arXiv 1810.04805)
_TOLERANCE = 1e-6
_LOW_64 = (1 << 64) - 1


class Fusion(nn.Module):
    """Words attend to patches and add what they find: nothing at first, as the output projection begins at 0."""

    def __init__(self, width: int, image_width: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, kdim=image_width, vdim=image_width, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)
        nn.init.zeros_(self.attention.out_proj.bias)

    def forward(self, words_BLW: Tensor, patches_BPW: Tensor) -> Tensor:
        """(B, L, W)."""
        found_BLW, _ = self.attention(self.norm(words_BLW), patches_BPW, patches_BPW, need_weights=False)
        return words_BLW + found_BLW  # type: ignore[no-any-return]


class Masked(NamedTuple):
    """(B, L) each: ids, some replaced; what is hidden; the word that stood there, NO_TARGET where none is asked."""

    ids: Tensor
    is_hidden: Tensor
    target: Tensor


def mask_words(
    text_BL: Tensor, is_word_BL: Tensor, position_B: Tensor, words: int, fraction: float, seed: int
) -> Masked:
    """Choose words to tell: a pure function of (seed, position of the pair in the run, column).

    A caption of few words may have none. Replacements are drawn from ids 1 to `words` - 1.
    """
    draw = partial(uniform, position_B[:, None], torch.arange(text_BL.shape[1], device=text_BL.device), seed)
    is_chosen = is_word_BL & (draw(0) < fraction)
    fate = draw(1)
    is_replaced = is_chosen & (fate >= _HIDDEN) & (fate < _HIDDEN + _REPLACED)
    other_BL = 1 + (draw(2) * (words - 1)).long()
    return Masked(
        torch.where(is_replaced, other_BL, text_BL), is_chosen & (fate < _HIDDEN),
        torch.where(is_chosen, text_BL, NO_TARGET),
    )  # fmt: skip


def uniform(position_B1: Tensor, column_L: Tensor, seed: int, stream: int) -> Tensor:
    """(B, L) numbers in [0, 1): whatever the ranks and chunks, and on every device, the same bits."""
    key = mixed(torch.tensor(seed * 8 + stream, device=position_B1.device))
    bits_BL = mixed(mixed(key + position_B1) + column_L)
    return shifted(bits_BL, 11).double() * 2.0**-53


def mixed(bits: Tensor) -> Tensor:
    """SplitMix64's step and finaliser (Steele et al., OOPSLA 2014) on int64, whose products wrap around."""
    bits = bits + _signed(0x9E3779B97F4A7C15)
    bits = (bits ^ shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ shifted(bits, 31)


def shifted(bits: Tensor, places: int) -> Tensor:
    """To the right, zeros coming in: torch's own shift of int64 copies the sign."""
    return (bits >> places) & (_LOW_64 >> places)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class MaskedDecoder(Aid):
    """`masked_states` (B, L, W), `masked_targets` (B, L) int64, and `word_embedding` (V, W) to tell words with.

    Nothing where pairs have no position in a run, as in validation.
    """

    reads_tokens: ClassVar[bool] = True
    shared: ClassVar[frozenset[str]] = frozenset({"word_embedding"})

    def __init__(self, spec: MaskedLanguage, width: int, image_width: int, embedding_std: float) -> None:
        """`embedding_std` of a word's values: the head's states are so long that logits begin with variance 1.

        With states of length sqrt(W), logits of 49,408 small embeddings hardly differ for thousands of steps.
        """
        super().__init__()
        self.spec = spec
        self.mask_embedding = nn.Parameter(torch.randn(width) * 0.02)  # CLIP's scale of word embeddings
        self.fusions = nn.ModuleList(Fusion(width, image_width, spec.num_heads) for _ in range(spec.fusion_layers))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        nn.init.constant_(self.head[2].weight, 1 / (embedding_std * width**0.5))  # type: ignore[arg-type]

    def outputs(self, model: Any, inputs: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The second reading of the main captions."""
        if "position" not in inputs:
            return {}
        tower, spec = getattr(model, "text", model), self.spec
        words = tower.token_embedding.num_embeddings - 2  # start and end are the last two
        position_B = inputs["position"].to(inputs["text"].device)
        masked = mask_words(inputs["text"], seen["text_mask"], position_B, words, spec.mask_fraction, spec.seed)
        states_BLW = self.head(self._read(tower, masked, seen["image_states"]))
        forget_exposed(model)
        return {
            "masked_states": states_BLW,
            "masked_targets": masked.target,
            "word_embedding": tower.token_embedding.weight,
        }

    def _read(self, tower: Any, masked: Masked, image_BPW: Tensor) -> Tensor:
        length, blocks = masked.ids.shape[1], tower.transformer.resblocks
        x_BLW = torch.where(masked.is_hidden[..., None], self.mask_embedding, tower.token_embedding(masked.ids))
        x_BLW = x_BLW + tower.positional_embedding[:length]
        first_fused = len(blocks) - len(self.fusions)
        read = partial(checkpoint, use_reentrant=False) if tower.transformer.grad_checkpointing else _call
        for number, block in enumerate(blocks):
            x_BLW = read(block, x_BLW, None, None, tower.attn_mask[:length, :length])
            if number >= first_fused:
                x_BLW = self.fusions[number - first_fused](x_BLW, image_BPW)
        return tower.ln_final(x_BLW)  # type: ignore[no-any-return]


def _call(block: nn.Module, *inputs: Any) -> Any:
    return block(*inputs)


def forget_exposed(model: nn.Module) -> None:
    """Drop what blocks exposed in the second reading: the next forward pass would take it for its own."""
    for module in model.modules():
        exposed = getattr(module, "exposed", None)
        if exposed:
            exposed.clear()


def apply(spec: MaskedLanguage, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:  # noqa: ARG001
    """Towers with a decoder of masked words, random by the spec's seed.

    Checked: the features are what they were, and the decoder starts without the picture.

    Raises:
        ModelError: tokens that cannot be told, fewer blocks than fusions, or heads that do not divide the width.
    """
    changed = rebuild(towers, spec.model_dump())
    return changed, [features_stay(towers, changed), _starts_blind(changed)]


def rebuild(towers: Towers, layout: dict[str, Any]) -> Towers:
    """The same decoder on fresh towers, for loading weights."""
    spec = MaskedLanguage.model_validate(layout)
    towers.require_tokens(f"surgery `{_NAME}`")
    tower, visual = towers.text_tower, towers.model.visual
    width, blocks = tower.token_embedding.embedding_dim, len(tower.transformer.resblocks)
    if spec.fusion_layers > blocks:
        raise ModelError(
            f"surgery `{_NAME}`: fusion_layers {spec.fusion_layers} is above the text tower's {blocks} blocks; lower it"
        )
    if width % spec.num_heads:
        raise ModelError(
            f"surgery `{_NAME}`: num_heads {spec.num_heads} does not divide the text tower's width {width}; change it"
        )
    image_width = int(visual.ln_post.normalized_shape[0])  # type: ignore[union-attr,index]
    with seeded(spec.seed):
        aid = MaskedDecoder(spec, width, image_width, float(tower.token_embedding.weight.detach().std()))
    return attach(towers, _NAME, aid, layout)


@torch.no_grad()
def _starts_blind(towers: Towers) -> Check:
    """Largest change of the decoder's states when pictures change places."""
    inputs = random_inputs(towers)
    inputs["position"] = torch.arange(len(inputs["image"]))
    one, two = (towers.eval()({**inputs, "image": image}) for image in (inputs["image"], inputs["image"].flip(0)))
    moved = float((one["masked_states"] - two["masked_states"]).abs().max())
    return Check("the decoder starts without the picture", moved, _TOLERANCE)
