"""Every distinct text of a feature set, once: captions of the embedded pairs, filled templates, queries.

Texts are sorted and cut into pieces, which are done like shards. Inside a piece texts of like length share a forward
pass, as a pass costs what its longest text does.
Legend: T texts of a piece, L tokens, B texts of a pass, D embedding.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.artifacts import open_artifact
from data.features import require_finite
from data.lookup import Lookup
from data.shards import ShardSet, read_parquet, write_parquet
from data.shardwise import Summary
from training.embed_job import Job, Piece, new_array
from training.forward import in_order
from training.specs import Prompts
from training.tokens import CaptionTokens

TEXTS_PER_PIECE = 16_384  # some seconds of work
_LAYERS = "caption_layers."


def distinct_texts(job: Job, uids: pa.Array) -> pa.Array:
    """Sorted distinct texts of the pairs `uids`, of the prompts and the queries."""
    pairs, spec, embedded = job.pairs(), job.spec, Lookup(uids)
    captions = [pairs.artifact.at("captions", f"{shard.name}.parquet") for shard in pairs.shards]
    for role in sorted(role for role in job.uris if role.startswith(_LAYERS)):
        layer = open_artifact(job.uris[role])
        names = (name for name, _ in storage.list_files(layer.at("captions")))
        captions += [layer.at("captions", name) for name in names if name.endswith(".parquet")]
    own = pa.array([*prompt_texts(pairs, spec.prompts), *spec.queries], pa.large_string())
    texts = pc.unique(pa.chunked_array([own, *(_captions(uri, embedded) for uri in captions)]))
    return texts.take(pc.sort_indices(texts))


def _captions(uri: str, embedded: Lookup) -> pa.Array:
    table = read_parquet(uri, ["uid", "caption"])
    captions = table["caption"].filter(pa.array(embedded.rows_of(table["uid"]) >= 0))
    return pc.unique(captions.cast(pa.large_string())).drop_null()


def prompt_texts(pairs: ShardSet, prompts: Sequence[Prompts]) -> list[str]:
    """Every class in every template, sorted."""
    texts = set()
    for prompt in prompts:
        names = prompt.classes or field_values(pairs, prompt.field)
        texts |= {template.replace("{c}", name) for name in names for template in prompt.templates}
    return sorted(texts)


def field_values(pairs: ShardSet, field: str) -> set[str]:
    """Every value of a metadata field over the shard set; of a list, every value in it."""
    found: set[str] = set()
    for _, meta in pairs.metadata():
        value = meta.get(field)
        values = value if isinstance(value, list) else [value]
        found |= {str(one) for one in values if one not in (None, "")}
    return found


def write_pieces(job: Job, texts: pa.Array) -> list[str]:
    """Keep the texts in pieces for the workers; the pieces' names."""
    count = -(-len(texts) // TEXTS_PER_PIECE)
    names = [f"{number:05d}" for number in range(count)]
    for number, name in enumerate(names):
        part = texts.slice(number * TEXTS_PER_PIECE, TEXTS_PER_PIECE)
        write_parquet(job.state("texts-in", f"{name}.parquet"), pa.table({"text": part}))
    return names


def embed_piece(job: Job, names: Sequence[str], number: int) -> Summary:
    """Keep text_features (T, D) of one piece."""
    texts = read_parquet(job.state("texts-in", f"{names[number]}.parquet"))["text"].to_pylist()
    forward = job.forward
    ids_TL = CaptionTokens(forward.towers.tokenizer)(texts)
    with storage.local_output(_rows_uri(job, names[number])) as path:
        rows_TD = new_array(path, (len(texts), job.embed_dim))

        def do(part: npt.NDArray[np.int64]) -> None:
            values_BD = forward.texts(ids_TL[part])
            require_finite(values_BD, [texts[row] for row in part], "text")
            rows_TD[part] = values_BD

        passes = _passes(ids_TL, forward.rows)
        for _ in in_order(do, passes, job.threads, job.ahead(forward.rows)):
            pass
    return {"texts": len(texts)}


def _passes(ids_TL: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of each forward pass; the last id that is not padding tells how long a text is."""
    lengths_T = ids_TL.shape[1] - (ids_TL[:, ::-1] != 0).argmax(axis=1)
    order = np.argsort(lengths_T, kind="stable")
    yield from (order[at : at + size] for at in range(0, len(order), size))


def text_pieces(job: Job, names: Sequence[str], count: int) -> list[Piece]:
    """Where the rows of `count` texts lie."""
    return [
        Piece(_rows_uri(job, name), np.arange(at, min(at + TEXTS_PER_PIECE, count)))
        for name, at in zip(names, range(0, count, TEXTS_PER_PIECE), strict=True)
    ]


def _rows_uri(job: Job, name: str) -> str:
    return job.state("texts-out", f"{name}.npy")
