"""The walk over captions: numba kernels that find every entry of a `Table` in a stream of captions.

Captions pass through windows of some hundred tokens, and each step runs over a whole window: cut tokens, hash them and
ask for their slots, compare, pair neighbours, and the same again. So memory's latency overlaps, and hardly a branch
depends on the text. A caption longer than a window is carried on in the next, with the tokens its longest entry may
still need: memory is that of one window and of the distinct entries found, also for a caption of 100 MB.
"""

import string
from typing import Any

import numpy as np

from data.curation.kernels import (
    LANES,
    Array,
    Int,
    Word,
    byte_mask,
    compiled,
    inlined,
    load64,
    prefetch,
    rank,
    trailing_zeros,
)
from data.curation.ngram_table import (
    CONTINUES,
    INLINE_BYTES,
    LOW32,
    NUMBER,
    STARTS,
    Table,
    U,
    hash_gram,
    hash_token,
    slot_of,
)

_WINDOW = 640  # tokens after which a window takes no further caption
_ROOM = 1024  # tokens at which a window ends inside a caption
_PER_LOAD = 130  # tokens that 64 bytes can end, with the caption's own end
_RANKED = 64  # up to here ids are sorted by counting smaller ones, 16 a comparison
_STARTS_BIT, _CONTINUES_BIT = U(31), U(30)
_LOW = np.array(
    [(1 << 8 * min(size, 8)) - 1 for size in range(INLINE_BYTES + 1)], np.uint64
)  # masks of a token's words
_HIGH = np.array([(1 << 8 * max(size - 8, 0)) - 1 for size in range(INLINE_BYTES + 1)], np.uint64)
_blanks, _marks, _spaces = byte_mask(b" \t\n\r"), byte_mask(b",.;:?!`"), byte_mask(b" ")
_MARK = np.zeros(256, np.bool_)
_MARK[list(b",.;:?!`")] = True
_BLANK = np.zeros(256, np.bool_)
_BLANK[list(b" \t\n\r")] = True


@inlined
def _grown(array: Array, wanted: Int) -> Any:
    """The array, or a longer copy."""
    if len(array) >= wanted:
        return array
    longer = np.empty(max(wanted, 2 * len(array)), array.dtype)
    longer[: len(array)] = array
    return longer


@compiled
def _cut(
    text: Array, offsets: Array, spaced: bool, state: Array, begins: Array, sizes: Array, ends: Array, count: Int
) -> Any:
    """Fill the window with tokens, a separator after each caption; return how many tokens, how many whole captions.

    state: caption, byte to go on from, byte its open token begins at. `spaced` text has no marks to space.
    """
    caption, at, begin = state[0], state[1], state[2]
    captions, full, room = 0, count + _WINDOW, count + _ROOM
    while caption < len(offsets) - 1 and count < full:
        end = offsets[caption + 1]
        while at < end and count < room:
            marks = U(0) if spaced else _marks(text, at)
            cuts = _spaces(text, at) if spaced else _blanks(text, at) | marks
            if end - at < 64:
                cuts &= (U(1) << U(end - at)) - U(1)
            while cuts:
                bit = trailing_zeros(cuts)
                begins[count], sizes[count] = begin, at + bit - begin
                begins[count + 1], sizes[count + 1] = at + bit, 1  # the mark, if it is one
                count += 1 + np.int64((marks >> U(bit)) & U(1))
                begin = at + bit + 1
                cuts &= cuts - U(1)
            at += 64
        if at < end:
            break
        begins[count], sizes[count] = begin, end - begin
        begins[count + 1], sizes[count + 1] = end, 0
        count += 2
        ends[captions] = count
        captions, caption = captions + 1, caption + 1
        at = begin = end
    state[0], state[1], state[2] = caption, at, begin
    return count, captions


@compiled
def _find_tokens(
    text: Array, table: Table, begins: Array, sizes: Array, first: Word, last: Word,
    slots: Array, keys: Array, numbers: Array, entries: Array,
) -> Any:  # fmt: skip
    """Number (with flags) and entry + 1 of each token, 0 where it is unknown."""
    seeds, words = table.token_seeds, table.token_slots
    num_slots = len(words) >> 2
    for t in range(first, last):
        start, size = begins[t], sizes[t]
        inside = U(min(size, INLINE_BYTES))
        low, high = load64(text, start) & _LOW[inside], load64(text, start + 8) & _HIGH[inside]
        slot = slot_of(hash_token(text, start, size, low, high, table.token_salt), seeds, num_slots) * 4
        prefetch(words, slot)
        slots[t], keys[t + t], keys[t + t + U(1)] = slot, low, high
    for t in range(first, last):
        slot, size = slots[t], sizes[t]
        length_entry, number_tail = load64(words, slot + 2), load64(words, slot + 3)
        differs = (load64(words, slot) ^ keys[t + t]) | (load64(words, slot + 1) ^ keys[t + t + U(1)])
        differs |= (length_entry >> U(32)) ^ U(size)
        if size > INLINE_BYTES and differs == 0:
            tail = np.int64(number_tail & LOW32)
            for at in range(INLINE_BYTES, size):
                differs |= U(table.tails[tail + at - INLINE_BYTES] ^ text[begins[t] + at])
        known = U(0) - U(differs == 0)  # all bits or none: no branch
        numbers[t] = (number_tail >> U(32)) & known
        entries[t] = length_entry & LOW32 & known


@compiled
def _find_gram(table: Table, key: Word) -> Any:
    """Number (with flags) << 32 | entry + 1 of the node that a node and a token make; 0 if no entry goes on so."""
    words = table.gram_slots
    slot = slot_of(hash_gram(key, table.gram_salt), table.gram_seeds, len(words) >> 1) * 2
    return load64(words, slot + 1) if load64(words, slot) == key else U(0)


@compiled
def _find_pairs(
    table: Table, numbers: Array, last: Word, keys: Array, begins: Array, slots: Array, entries: Array, deep: Array
) -> Any:
    """Entry + 1 of each pair of neighbours; the starts of longer entries go to `deep`, the table's node to `keys`."""
    words, marks = table.gram_slots, table.gram_marks
    num_slots = len(words) >> 1
    count: Word = U(0)
    for t in range(last):
        entries[t] = U(0)
        this, following = numbers[t], numbers[t + U(1)]
        keys[count], begins[count] = (this & NUMBER) << U(32) | following & NUMBER, t
        count += (this >> _STARTS_BIT) & (following >> _CONTINUES_BIT) & U(1)
    likely: Word = U(0)
    for j in range(count):
        value = hash_gram(keys[j], table.gram_salt)
        slot = slot_of(value, table.gram_seeds, num_slots)
        keys[likely], begins[likely], slots[likely] = keys[j], begins[j], slot
        likely += U(marks[U(slot)] == (value & U(0xFF)))
    for j in range(likely):
        prefetch(words, slots[j] + slots[j])
    found: Word = U(0)
    for j in range(likely):
        slot = slots[j] + slots[j]
        known = U(0) - U(load64(words, slot) == keys[j])
        value = load64(words, slot + 1) & known
        entries[U(begins[j])] = value & LOW32
        deep[found], keys[found] = begins[j], value >> U(32)
        found += value >> U(63)
    return np.int64(found)


@compiled
def _find_longer(table: Table, numbers: Array, at: Int, node: Word, raw: Array, held: Int) -> Any:
    """Ids of entries of three and more tokens that go on from `node` with the token `at`."""
    while node & STARTS and numbers[at] & CONTINUES:
        value = _find_gram(table, (node & NUMBER) << U(32) | numbers[at] & NUMBER)
        if value == 0:
            break
        if value & LOW32:
            raw = _grown(raw, held + LANES + 1)
            raw[held] = np.int32(np.int64(value & LOW32) - 1)
            held += 1
        node, at = value >> U(32), at + 1
    return raw, held


@compiled
def _character(text: Array, at: Int, phase: Int, end: Int, spaced: bool) -> Any:
    """Character of the spaced caption at a place, and the next place; a mark has three phases, the ends are spaces."""
    if at < 0 or at >= end:
        return np.int64(32), at + 1, 0
    byte = np.int64(text[at])
    if not spaced and _MARK[byte]:
        return (byte if phase == 1 else np.int64(32)), at + phase // 2, (phase + 1) % 3
    if byte < 0x80:
        return (np.int64(32) if not spaced and _BLANK[byte] else byte), at + 1, 0
    following = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3
    point = byte & (0x3F >> following)
    for k in range(1, following + 1):
        point = point << 6 | np.int64(text[at + k]) & 0x3F
    return point, at + following + 1, 0


@compiled
def _find_characters(table: Table, text: Array, end: Int, spaced: bool, raw: Array, held: Int) -> Any:
    """Ids of entries without word boundaries in one caption: a walk from each of its characters."""
    at, phase = np.int64(-1), np.int64(0)
    while at <= end:
        point, after, next_phase = _character(text, at, phase, end, spaced)
        if table.first_characters[min(point >> 7, 255)]:
            node, there, there_phase = U(table.root), at, phase
            while there <= end:
                point, there, there_phase = _character(text, there, there_phase, end, spaced)
                value = _find_gram(table, (node & NUMBER) << U(32) | U(point))
                if value == 0:
                    break
                if value & LOW32:
                    raw = _grown(raw, held + LANES + 1)
                    raw[held] = np.int32(np.int64(value & LOW32) - 1)
                    held += 1
                node = value >> U(32)
        at, phase = after, next_phase
    return raw, held


@compiled
def _gather(singles: Array, pairs: Array, last: Int, raw: Array, held: Int, stops: Array) -> Any:
    """Append the ids of all tokens and pairs; stops[t]: how many ids the first t tokens have."""
    at = U(held)
    for t in range(U(last)):
        stops[t] = at
        raw[at] = np.int32(np.int64(singles[t]) - 1)
        at += U(singles[t] != 0)
        raw[at] = np.int32(np.int64(pairs[t]) - 1)
        at += U(pairs[t] != 0)
    held = np.int64(at)
    stops[last] = held
    return held


@compiled
def _sorted_distinct(raw: Array, first: Int, held: Int, ids: Array, at: Int) -> Any:
    """`_distinct` of many ids, where counting would cost more than sorting."""
    ordered = np.sort(raw[first : first + held])
    for k in range(held):
        if k == 0 or ordered[k] != ordered[k - 1]:
            ids[at] = ordered[k]
            at += 1
    return at


@compiled
def _distinct(raw: Array, first: Int, held: Int, ranks: Array, ids: Array, at: Int) -> Any:
    """Write raw[first : first + held], ascending and once each, to ids[at:]; return where they end. All have room."""
    if held > _RANKED:
        return _sorted_distinct(raw, first, held, ids, at)
    for k in range(held):
        ids[at + k] = -1
    for lane in range(0, held, LANES):
        rank(raw, first, lane, held, ranks)
    for k in range(held):  # equal ids have equal ranks: all but one of their places stay -1
        ids[at + ranks[k]] = raw[first + k]
    end = at
    for k in range(at, at + held):
        ids[end] = ids[k]
        end += np.int64(ids[k] >= 0)
    return end


@compiled
def _find_rest(text: Array, table: Table, spaced: bool, raw: Array, held: Int) -> Any:
    """Append what is found without tokens in one caption."""
    if table.first_characters.any():
        raw, held = _find_characters(table, text, len(text), spaced, raw, held)
    if table.everywhere:
        raw = _grown(raw, held + 1)
        raw[held] = np.int32(table.everywhere - 1)
        held += 1
    return raw, held


@compiled
def match_texts(text: Array, offsets: Array, table: Table, spaced: bool) -> Any:
    """CSR (indptr, ids) of the entries in each caption, ascending; `spaced` text is cut at spaces only."""
    num_captions, size = len(offsets) - 1, table.longest + _ROOM + _PER_LOAD
    begins, sizes, slots, deep = (np.empty(size, np.int64), np.empty(size, np.int64),
                                  np.empty(size, np.int64), np.empty(size, np.int64))  # fmt: skip
    keys, numbers, singles, pairs = (np.empty(2 * size, np.uint64), np.zeros(size, np.uint64),
                                     np.zeros(size, np.uint64), np.zeros(size, np.uint64))  # fmt: skip
    ends, stops, ranks = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(_RANKED + LANES, np.int32)
    indptr, ids = np.zeros(num_captions + 1, np.int64), np.empty(len(text) // 4 + LANES, np.int32)
    raw, more, held = np.empty(4 * size, np.int32), np.empty(4 * size, np.int32), 0
    row, carried, written, limit, state = 0, 0, 0, 1 << 16, np.zeros(3, np.int64)
    by_character = table.first_characters.any() or table.everywhere != 0
    while row < num_captions:
        count, captions = _cut(text, offsets, spaced, state, begins, sizes, ends, carried)
        _find_tokens(text, table, begins, sizes, U(carried), U(count), slots, keys, numbers, singles)
        for c in range(captions):
            numbers[ends[c] - 1] = singles[ends[c] - 1] = 0
        numbers[count] = 0
        last = max(ends[captions - 1] if captions else 0, count - (table.longest - 1))
        num_deep, next_deep = _find_pairs(table, numbers, U(last), keys, begins, slots, pairs, deep), 0
        raw = _grown(raw, held + 2 * last + LANES)
        held, first = _gather(singles, pairs, last, raw, held, stops), 0
        ids = _grown(ids, written + held + LANES)
        for c in range(captions):
            found = stops[ends[c]] - first
            if by_character or (next_deep < num_deep and deep[next_deep] < ends[c]):
                more = _grown(more, found)
                more[:found] = raw[first : first + found]
                while next_deep < num_deep and deep[next_deep] < ends[c]:
                    more, found = _find_longer(table, numbers, deep[next_deep] + 2, keys[next_deep], more, found)
                    next_deep += 1
                more, found = _find_rest(text[offsets[row] : offsets[row + 1]], table, spaced, more, found)
                more, ids = _grown(more, found + LANES), _grown(ids, written + found + held - first + LANES)
                written = _distinct(more, 0, found, ranks, ids, written)
            else:
                written = _distinct(raw, first, found, ranks, ids, written)
            first, row = stops[ends[c]], row + 1
            indptr[row] = written
        held -= first
        for k in range(held):  # of a caption that goes on in the next window
            raw[k] = raw[first + k]
        for j in range(next_deep, num_deep):
            raw, held = _find_longer(table, numbers, deep[j] + 2, keys[j], raw, held)
        if held > limit:
            held = _sorted_distinct(raw, 0, held, raw, 0)
            limit = max(limit, 2 * held)
        carried = count - last
        for k in range(carried):
            numbers[k], singles[k] = numbers[last + k], singles[last + k]
    return indptr, ids[:written]


_SPACE, _PUNCTUATION, _LETTER = 1, 2, 0
_RELAXED = np.zeros(128, np.uint8)
_RELAXED[list(b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f ")] = _SPACE  # what str.split takes for white space
_RELAXED[list(string.punctuation.encode())] = _PUNCTUATION


@compiled
def relax_ascii(text: Array, offsets: Array, others: Array) -> Any:
    """Text and offsets of captions in lower case, marks between spaces, spaces collapsed; `others` stay as they are."""
    out, starts = np.zeros(2 * len(text), np.uint8), np.zeros(len(offsets), np.int64)
    at = 0
    for i in range(len(others)):
        begin, space = at, False
        for k in range(offsets[i], offsets[i + 1]):
            byte = text[k]
            kind = _LETTER if others[i] else _RELAXED[byte]
            if kind == _SPACE:
                space = True
                continue
            if at > begin and (space or kind == _PUNCTUATION):
                out[at] = 32
                at += 1
            upper = not others[i] and 65 <= byte <= 90
            out[at] = byte + 32 if upper else byte
            at, space = at + 1, kind == _PUNCTUATION
        starts[i + 1] = at
    return out, starts
