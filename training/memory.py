"""What one rank of a training stage keeps in memory, estimated from sizes alone: no torch.

The values kept for the backward pass were counted in open_clip's blocks with torch's saved-tensor hooks: 8 W + 2 M
values a token and block (W width, M width inside the FFN), of which the two inputs of norms stay float32 under bf16.
"""

from dataclasses import dataclass, replace

from training.sizes import ModelSizes
from training.tower_sizes import Blocks, Tower

_FLOAT_BYTES = 4
_ADAMW_FLOATS = 2  # its two averages
_TILE_EDGES = {False: 1024, True: 4096}  # is_gpu -> rows and columns of a tile, as in objectives/tiles.py
_TILES = 10  # of a distillation's rows; a contrast needs three
_BATCHES = 3  # in training, made ahead, being put together
_WORKER_PIECES, _PIECE_PAIRS = 3, 64  # as in workers.py and loading.py
_PROCESS_BYTES = 800 << 20  # resident after importing torch and open_clip (0.81 GB measured); about a CUDA context's


@dataclass(frozen=True)
class Step:
    """One optimizer step of one rank, as far as memory goes."""

    sizes: ModelSizes
    trainable: int  # parameters
    global_batch_size: int
    ranks: int = 1
    chunk_pairs: int | None = None
    is_sharded: bool = False  # FSDP over all ranks
    recomputes: bool = False  # activation checkpointing
    is_bf16: bool = False
    teachers: tuple[ModelSizes, ...] = ()
    is_gpu: bool = False  # then the loader's memory is another one
    loader_workers: int = 0

    @property
    def rank_batch_size(self) -> int:
        """Pairs of this rank."""
        return self.global_batch_size // self.ranks

    @property
    def chunk(self) -> int:
        """Pairs of one forward pass."""
        return min(self.chunk_pairs or self.rank_batch_size, self.rank_batch_size)


def needed_bytes(step: Step) -> dict[str, int] | None:
    """Bytes by what they are for; None where the model's towers are not counted."""
    parameters = step.sizes.parameters
    if parameters is None or any(teacher.parameters is None for teacher in step.teachers):
        return None
    share = step.ranks if step.is_sharded else 1
    whole_gradients = step.is_sharded and step.chunk < step.rank_batch_size  # FSDP reduces with the last chunk
    teachers = sum(teacher.parameters or 0 for teacher in step.teachers)
    return {
        "weights": _FLOAT_BYTES * (parameters // share + teachers) + _gathered(step) + _cast(step, parameters),
        "gradients": _FLOAT_BYTES * step.trainable // (1 if whole_gradients else share),
        "optimizer": _FLOAT_BYTES * _ADAMW_FLOATS * step.trainable // share,
        "activations": step.chunk * activation_bytes(step.sizes, step.is_bf16, step.recomputes),
        "pictures": 2 * step.chunk * _FLOAT_BYTES * _input_values(step.sizes),  # scaled, then normalised
        "loss": _loss_bytes(step),
        "loader": 0 if step.is_gpu else _loader_bytes(step),
        "process": _PROCESS_BYTES,
    }


def activation_bytes(sizes: ModelSizes, is_bf16: bool = False, recomputes: bool = False) -> int:
    """Bytes that one pair of full context length keeps for the backward pass; with what that needs at its peak."""
    assert sizes.image is not None
    assert sizes.text is not None
    return sum(_tower_bytes(tower, is_bf16, recomputes) for tower in (sizes.image, sizes.text))


def largest_chunk(step: Step, available_bytes: float) -> int | None:
    """The most pairs of a forward pass with which the step fits: the rank's batch or a power of two; None: not one."""
    chunk = step.rank_batch_size
    while chunk:
        needed = needed_bytes(replace(step, chunk_pairs=chunk))
        if needed is None or sum(needed.values()) <= available_bytes:
            return chunk
        chunk = 1 << (chunk - 1).bit_length() - 1 if chunk > 1 else 0
    return None


def checkpoint_bytes(parameters: int, trainable: int) -> int:
    """Size of one restart state: weights, and AdamW's averages of what trains."""
    return _FLOAT_BYTES * (parameters + _ADAMW_FLOATS * trainable)


def _tower_bytes(tower: Tower, is_bf16: bool, recomputes: bool) -> int:
    value_bytes = 2 if is_bf16 else _FLOAT_BYTES
    if tower.blocks is None:
        return value_bytes * tower.fixed_values
    tokens, W = tower.tokens + tower.added_tokens, tower.blocks.width
    of_layer = [_block_bytes(tower.blocks, layer, value_bytes) for layer in range(tower.blocks.layers)]
    kept = tower.blocks.layers * W * _FLOAT_BYTES + max(of_layer) if recomputes else sum(of_layer)
    gradients = 2 * (W + tower.blocks.mlp_width) * value_bytes  # of one block, while all else is still kept
    return tokens * (kept + gradients + 2 * W * _FLOAT_BYTES)


def _block_bytes(blocks: Blocks, layer: int, value_bytes: int) -> int:
    """Of one token in one block: a mixture keeps what enters, is inside and leaves each of its `top_k` experts."""
    W, M = blocks.width, blocks.mlp_width
    is_mixed = layer >= blocks.layers - blocks.mixed
    mlp = blocks.top_k * (2 * W + 2 * M) + 2 * blocks.num_experts if is_mixed else W + 2 * M
    return 2 * W * _FLOAT_BYTES + (5 * W + mlp) * value_bytes


def _gathered(step: Step) -> int:
    """What FSDP brings together at a time: the largest block, and what belongs to no block."""
    named = step.sizes.named
    if not step.is_sharded or named is None:
        return 0
    of_block: dict[str, int] = {}
    for name, values in named.items():
        head, inside, tail = name.partition(".resblocks.")
        block = f"{head}.{tail.partition('.')[0]}" if inside else ""
        of_block[block] = of_block.get(block, 0) + values
    outside = of_block.pop("", 0)
    return (2 if step.is_bf16 else _FLOAT_BYTES) * (outside + max(of_block.values(), default=0))


def _cast(step: Step, parameters: int) -> int:
    """Autocast keeps a bf16 copy of the weights that it has met; FSDP's are in its gathered blocks."""
    return 2 * parameters if step.is_bf16 and not step.is_sharded else 0


def _loss_bytes(step: Step) -> int:
    """Tiles of similarities, and three times both towers' features of all ranks: gathered, scaled, gradients."""
    edge, rows, columns = _TILE_EDGES[step.is_gpu], step.rank_batch_size, step.global_batch_size
    tile = min(rows * columns, edge * edge)
    return _FLOAT_BYTES * (_TILES * tile + 3 * step.sizes.embed_dim * (rows + columns))


def _loader_bytes(step: Step) -> int:
    """uint8 pictures: of whole batches, and in the pieces that each loader worker holds."""
    pairs = _BATCHES * step.rank_batch_size + step.loader_workers * _WORKER_PIECES * _PIECE_PAIRS
    return pairs * _input_values(step.sizes)


def _input_values(sizes: ModelSizes) -> int:
    return sizes.image.input_values if sizes.image else 0
