"""The table that captions are looked up in: entries as paths of tokens, found by perfect hashing.

Tokens are numbered; so is every run of tokens that begins an entry (a node). Two tables: bytes of a token -> its
number, and (node, next token) -> the node they make. Both are exact: bytes and pairs are compared, the hash only says
where to look. The hash is perfect (each key has a slot of its own: hash and displace), so that a look-up is one cache
line, neither probing nor guessing. Entries that need no word boundary are paths of characters from `root`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.curation.kernels import (
    Array,
    Bytes,
    Int,
    Longs,
    Word,
    Words,
    compiled,
    fold,
    inlined,
    load64,
    scale,
    text_buffers,
)

Seeds = npt.NDArray[np.uint16]
U = np.uint64
KEY_A, KEY_B, KEY_C = U(0x9E3779B97F4A7C15), U(0xC2B2AE3D27D4EB4F), U(0xD6E8FEB86659FD93)  # odd, bits well mixed
ALL, LOW32 = U(0xFFFFFFFFFFFFFFFF), U(0xFFFFFFFF)
NUMBER = U(0x3FFFFFFF)  # a number's own bits; above them, what can follow:
STARTS, CONTINUES = U(1 << 31), U(1 << 30)  # begins a longer entry; stands inside an entry, not first
INLINE_BYTES = 16  # of a token, inside its slot; the rest is in `tails`
_FILL = 0.75
_KEYS_PER_BUCKET = 4
_SALTS = 64
_MAX_NUMBER = int(NUMBER)


class Table(NamedTuple):
    """The table, as kernels read it. Token slot: two words of bytes, length | entry + 1, number | start of its tail.

    N-gram slot: node before << 32 | token (or character), then number << 32 | entry + 1.
    """

    token_seeds: Seeds
    token_slots: Words
    token_salt: int
    tails: Bytes
    gram_seeds: Seeds
    gram_marks: Bytes  # a byte of each n-gram's hash: most pairs that are none end here, in the cache
    gram_slots: Words
    gram_salt: int
    root: int  # number of the node before the first character
    first_characters: npt.NDArray[np.bool_]  # which `character_block`s entries without word boundaries begin with
    everywhere: int  # an empty entry without word boundaries + 1: in every caption
    longest: int  # tokens of the longest entry

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(value.nbytes for value in self if isinstance(value, np.ndarray))


@inlined
def low_bytes(count: Int) -> Any:
    """Mask of the `count` (any number) lowest bytes of a word."""
    return ALL if count >= 8 else ((U(1) << U(8 * max(count, 0))) - U(1))


@inlined
def hash_token(text: Array, start: Int, length: Int, low: Word, high: Word, salt: Int) -> Any:
    """Hash of a token whose first 16 bytes are low and high."""
    value = fold(low ^ KEY_A ^ U(salt), high ^ KEY_B ^ (U(length) * KEY_C))
    for at in range(INLINE_BYTES, length, 8):
        value = fold(value ^ (load64(text, start + at) & low_bytes(length - at)), KEY_B)
    return value


@inlined
def hash_gram(key: Word, salt: Int) -> Any:
    """Hash of node << 32 | token."""
    return fold(key ^ KEY_A ^ U(salt), KEY_B)


@inlined
def slot_of(value: Word, seeds: Array, num_slots: Int) -> Any:
    """Slot of a hash: its bucket's seed moves it."""
    seed = U(seeds[scale(value, U(len(seeds)))])
    return scale((value ^ (seed * KEY_A)) * KEY_C, U(num_slots))


@compiled
def _token_hashes(text: Array, offsets: Array, salt: Int) -> Any:
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(hashes)):
        start, length = offsets[i], offsets[i + 1] - offsets[i]
        low, high = load64(text, start) & low_bytes(length), load64(text, start + 8) & low_bytes(length - 8)
        hashes[i] = hash_token(text, start, length, low, high, salt)
    return hashes


@compiled
def _gram_hashes(keys: Array, salt: Int) -> Any:
    hashes = np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        hashes[i] = hash_gram(keys[i], salt)
    return hashes


@compiled
def _place(hashes: Array, order: Array, starts: Array, by_size: Array, seeds: Array, taken: Array, slots: Array) -> Any:
    """Give each bucket, largest first, the first seed that puts all its keys in free slots; False if one has none."""
    mine = np.empty(1, np.uint16)
    for bucket in by_size:
        members = order[starts[bucket] : starts[bucket + 1]]
        for seed in range(1 << 16):
            mine[0] = seed
            placed = 0
            for member in members:
                slot = slot_of(hashes[member], mine, len(taken))
                if taken[slot]:
                    break
                taken[slot], slots[member] = True, slot
                placed += 1
            if placed == len(members):
                seeds[bucket] = seed
                break
            for member in members[:placed]:
                taken[slots[member]] = False
        else:
            return False
    return True


def _perfect(hashes: Words) -> tuple[Seeds, Longs, int] | None:
    """Seeds, the slot of each hash, and the number of slots; None if hashes are equal or no seed is found."""
    num_buckets, num_slots = len(hashes) // _KEYS_PER_BUCKET + 1, int(len(hashes) / _FILL) + 2
    # as `scale` does, with the high half of the hash times the low half's carry, in integers that numpy has
    high, low = hashes >> U(32), hashes & LOW32
    buckets = ((high * U(num_buckets) + ((low * U(num_buckets)) >> U(32))) >> U(32)).astype(np.int64)
    sizes = np.bincount(buckets, minlength=num_buckets)
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    seeds, slots = np.zeros(num_buckets, np.uint16), np.zeros(len(hashes), np.int64)
    order, by_size = np.argsort(buckets, kind="stable"), np.argsort(-sizes, kind="stable")
    by_size = by_size[: np.count_nonzero(sizes)]
    found = _place(hashes, order, starts, by_size, seeds, np.zeros(num_slots, np.bool_), slots)
    return (seeds, slots, num_slots) if found else None


class _Nodes:
    """Numbers given so far, level by level: which keys made them, and what follows them."""

    def __init__(self, num_tokens: int) -> None:
        self.root = self.last = num_tokens + 1
        self.keys: list[Words] = []
        self.continues = np.zeros(self.root + 1, np.bool_)

    def walk(self, before: Longs, symbols: Longs, starts: Longs, lengths: Longs, level: int) -> Longs:
        """The node of each path, whose symbols begin at `starts`; `before` are the nodes of its first `level`."""
        nodes = before.copy()
        alive = np.flatnonzero(lengths > level)
        while len(alive):
            following = symbols[starts[alive] + level]
            keys, which = np.unique(nodes[alive].astype(U) << U(32) | following.astype(U), return_inverse=True)
            nodes[alive] = self.last + 1 + which
            self.last += len(keys)
            self.keys.append(keys)
            level += 1
            alive = alive[lengths[alive] > level]
        return nodes


def build_table(entries: pa.Array, unspaced: npt.NDArray[np.bool_], numbers: Longs) -> Table:
    """The table of distinct entries (large strings or binaries, tokens between single spaces), known by `numbers`."""
    bounded = entries.filter(pa.array(~unspaced))
    pieces = pc.split_pattern(bounded, " ")
    tokens = pieces.flatten().dictionary_encode()
    starts = np.asarray(pieces.offsets).astype(np.int64)
    symbols = np.asarray(tokens.indices).astype(np.int64) + 1
    nodes = _Nodes(len(tokens.dictionary))
    lengths = np.diff(starts)
    bounded_nodes = nodes.walk(symbols[starts[:-1]], symbols, starts[:-1], lengths, 1)
    inner = np.ones(len(symbols), np.bool_)
    inner[starts[:-1]] = False
    characters, char_starts, char_lengths = _characters(entries.filter(pa.array(unspaced)))
    roots = np.full(len(char_lengths), nodes.root, np.int64)
    char_nodes = nodes.walk(roots, characters, char_starts, char_lengths, 0)
    assert nodes.last <= _MAX_NUMBER, f"{nodes.last} runs of tokens: more than a number's 30 bits"

    entry_of = np.zeros(nodes.last + 1, U)  # entry + 1
    entry_of[bounded_nodes] = numbers[~unspaced] + 1
    entry_of[char_nodes] = numbers[unspaced] + 1
    everywhere, entry_of[nodes.root] = int(entry_of[nodes.root]), U(0)
    keys = np.concatenate([np.zeros(0, U), *nodes.keys])
    flags = np.zeros(nodes.last + 1, U)
    flags[np.unique(keys >> U(32)).astype(np.int64)] |= STARTS
    flags[np.unique(symbols[inner])] |= CONTINUES
    first = np.zeros(256, np.bool_)
    first[np.minimum(characters[char_starts[char_lengths > 0]] >> 7, 255)] = True
    return Table(
        *_token_table(tokens.dictionary, entry_of, flags),
        *_gram_table(keys, nodes.root, entry_of, flags),
        nodes.root, first, everywhere, int(lengths.max(initial=1)),
    )  # fmt: skip


def _characters(entries: pa.Array) -> tuple[Longs, Longs, Longs]:
    """Code points of all entries on end, where each entry begins, how many it has."""
    texts = [bytes(text).decode("utf-8", "surrogatepass") for text in entries.cast(pa.large_binary()).to_pylist()]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    return points, np.cumsum(lengths) - lengths, lengths


def _salted(hashes_of: Callable[[int], Words]) -> tuple[int, Seeds, Longs, int]:
    """The first salt whose hashes can be placed, and where; the first nearly always does."""
    for salt in range(_SALTS):
        placed = _perfect(hashes_of(salt))
        if placed:
            return salt, *placed
    raise AssertionError(f"none of {_SALTS} salts gives a perfect hash")


def _token_table(dictionary: pa.Array, entry_of: Words, flags: Words) -> tuple[Seeds, Words, int, Bytes]:
    text, offsets = text_buffers(dictionary)
    tails = np.maximum(np.diff(offsets) - INLINE_BYTES, 0)
    assert tails.sum() < 1 << 32, "tokens of more than 4 GiB"
    salt, seeds, slots, num_slots = _salted(lambda salt: _token_hashes(text, offsets, salt))
    words = np.full((num_slots, 4), ALL, U)  # a length of 2**32 - 1 is no token's
    tail_bytes = np.zeros(int(tails.sum()) + 8, np.uint8)
    numbers = np.arange(1, len(slots) + 1)
    _fill_tokens(text, offsets, words, slots, tail_bytes)
    words[slots, 2] |= entry_of[numbers]
    words[slots, 3] |= (numbers.astype(U) | flags[numbers]) << U(32)
    return seeds, words.ravel(), salt, tail_bytes


@compiled
def _fill_tokens(text: Array, offsets: Array, words: Array, slots: Array, tails: Array) -> Any:
    tail = 0
    for i in range(len(slots)):
        start, length = offsets[i], offsets[i + 1] - offsets[i]
        words[slots[i], 0] = load64(text, start) & low_bytes(length)
        words[slots[i], 1] = load64(text, start + 8) & low_bytes(length - 8)
        words[slots[i], 2] = U(length) << U(32)
        words[slots[i], 3] = U(tail)
        for at in range(start + INLINE_BYTES, start + length):
            tails[tail] = text[at]
            tail += 1


def _gram_table(keys: Words, root: int, entry_of: Words, flags: Words) -> tuple[Seeds, Bytes, Words, int]:
    salt, seeds, slots, num_slots = _salted(lambda salt: _gram_hashes(keys, salt))
    marks = np.zeros(num_slots, np.uint8)
    marks[slots] = (_gram_hashes(keys, salt) & U(0xFF)).astype(np.uint8)
    words = np.full((num_slots, 2), ALL, U)  # no pair of numbers is this key
    numbers = root + 1 + np.arange(len(keys))
    words[slots, 0] = keys
    words[slots, 1] = (numbers.astype(U) | flags[numbers]) << U(32) | entry_of[numbers]
    return seeds, marks, words.ravel(), salt
