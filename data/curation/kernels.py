"""What curation's numba kernels share: how they are compiled, and the machine's own words that numba has no name for.

Every function here is a load, a compare or a multiplication on raw memory: LLVM turns it into what the processor at
hand has (AVX-512, AVX2, NEON ...). No index is checked: callers hand in arrays of `text_buffers`, which are padded.

Compiled kernels are kept beside the module (`__pycache__`), or in numba's folder of the user's cache where that is
read-only, or below NUMBA_CACHE_DIR, until a file of curation changes.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Longs = npt.NDArray[np.int64]
Strings: TypeAlias = Sequence[str | None] | pa.Array | pa.ChunkedArray
# inside kernels, where mypy would take the machine's numbers for Python's
Array: TypeAlias = Any
Word: TypeAlias = Any  # uint64
Int: TypeAlias = Any  # int64
F = TypeVar("F", bound=Callable[..., Any])

PAD_BYTES = 64  # the widest load
_I8, _I32, _I64, _I128 = (ir.IntType(bits) for bits in (8, 32, 64, 128))
LANES = 32  # int32 values that `rank` takes at once


def compiled(function: F) -> F:
    """`numba.njit`, kept on disk where a folder for it can be written, else compiled by every process."""
    try:
        kernel = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba: "cannot cache function: no locator available"
        return njit(nogil=True)(function)  # type: ignore[no-any-return]
    # numba looks at a kernel's own file only, not at those of what it calls
    kernel._cache._cache_file._source_stamp = _sources()
    return kernel  # type: ignore[no-any-return]


@cache
def _sources() -> str:
    """Digest of every file that a kernel may come from."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def inlined(function: F) -> F:
    """A piece of a kernel, copied into each."""
    return njit(inline="always")(function)  # type: ignore[no-any-return]


def text_buffers(strings: Strings, padding: int = PAD_BYTES) -> tuple[Bytes, Longs]:
    """UTF-8 of all strings on end, and where each begins; null is empty, a lone surrogate is kept.

    With `padding` the bytes are copied in front of so many zeros; else they are the array's own.
    """
    array = arrow_strings(strings).cast(pa.large_binary())
    _, starts, content = array.buffers()
    offsets = np.frombuffer(starts, np.int64)[array.offset : array.offset + len(array) + 1]
    text = np.frombuffer(content or b"", np.uint8)[offsets[0] : offsets[-1]]
    if padding:
        text = np.concatenate((text, np.zeros(padding, np.uint8)))
    return text, offsets - offsets[0]


def arrow_strings(strings: Strings) -> pa.Array:
    """One array of large strings; of large binaries where a string has a lone surrogate."""
    if isinstance(strings, pa.ChunkedArray):
        strings = pa.concat_arrays(strings.chunks) if strings.num_chunks else pa.array([], strings.type)
    if isinstance(strings, pa.Array):
        return strings if pa.types.is_large_binary(strings.type) else strings.cast(pa.large_string())
    try:
        return pa.array(strings, pa.large_string())
    except UnicodeEncodeError:
        encoded = [None if text is None else text.encode("utf-8", "surrogatepass") for text in strings]
        return pa.array(encoded, pa.large_binary())


# ------------------------------------------------------------------------------------------------------- intrinsics


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, value=array).data, [index])


def _load(context: Any, builder: Any, signature: Any, arguments: Any, kind: Any) -> Any:
    address = _address(context, builder, signature.args[0], *arguments[:2])
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=1)


def _load64(_: Any, array: Any, _index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(context, builder, signature, arguments, _I64)

    return types.uint64(array, types.int64), generate


def _prefetch(_: Any, array: Any, _index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.bitcast(_address(context, builder, signature.args[0], *arguments), _I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        read, keep, data = _I32(0), _I32(3), _I32(1)
        builder.call(
            cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [address, read, keep, data]
        )
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _product(builder: Any, arguments: Any) -> tuple[Any, Any]:
    a, b = (builder.zext(argument, _I128) for argument in arguments)
    whole = builder.mul(a, b)
    return builder.trunc(builder.lshr(whole, _I128(64)), _I64), builder.trunc(whole, _I64)


def _fold(_: Any, _a: Any, _b: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.xor(*_product(builder, arguments))

    return types.uint64(types.uint64, types.uint64), generate


def _scale(_: Any, _a: Any, _b: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _product(builder, arguments)[0]

    return types.int64(types.uint64, types.uint64), generate


def _trailing_zeros(_: Any, _word: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


def _rank(_: Any, array: Any, _first: Any, _lane: Any, _count: Any, ranks: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, first, lane, count, ranks = arguments
        vector = ir.VectorType(_I32, LANES)
        lanes = _load(context, builder, signature, (values, builder.add(first, lane)), vector)
        sums = cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * LANES))
        with cgutils.for_range(builder, count) as loop:
            at = builder.add(first, loop.index)
            value = _splat(builder, builder.load(_address(context, builder, signature.args[0], values, at)))
            below = builder.icmp_signed("<", value, lanes)
            builder.store(builder.add(builder.load(sums), builder.zext(below, vector)), sums)
        out = builder.bitcast(_address(context, builder, signature.args[4], ranks, lane), vector.as_pointer())
        builder.store(builder.load(sums), out, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, types.int64, ranks), generate


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(_I32, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(vector, [0] * LANES))


def byte_mask(values: bytes) -> Any:
    """A kernel function (bytes, index) -> which of the 64 bytes from there are one of `values`, lowest bit first."""

    def typed(_: Any, array: Any, _index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = _load(context, builder, signature, arguments, ir.VectorType(_I8, 64))
            each = [builder.icmp_unsigned("==", lanes, ir.Constant(lanes.type, [value] * 64)) for value in values]
            found = each[0]
            for one in each[1:]:
                found = builder.or_(found, one)
            return builder.bitcast(found, _I64)

        return types.uint64(array, types.int64), generate

    return intrinsic(typed)


load64: Any = intrinsic(_load64)  # (array, index) -> the 8 bytes from there, in the machine's order
prefetch: Any = intrinsic(_prefetch)  # (array, index): it will be read soon
fold: Any = intrinsic(_fold)  # (a, b) -> high half of a x b, xor low half: every bit of both is in every bit
scale: Any = intrinsic(_scale)  # (a, b) -> a x b / 2**64: a hash a as a number below b
trailing_zeros: Any = intrinsic(_trailing_zeros)
# (int32 array, first, lane, count, ranks): ranks[lane + k] = how many of array[first : first + count] are smaller than
# array[first + lane + k], for k below LANES
rank: Any = intrinsic(_rank)
