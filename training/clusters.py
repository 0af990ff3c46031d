"""Cells for CLIP-MoE's single-cluster batches: product of image and text clusters, accumulated over phases."""

import io

import numpy as np
import torch
import torch.distributed as dist

from data import storage
from data.errors import ModelError
from training.checkpoints import PhaseResults
from training.embed_pictures import embed_rows
from training.forward import Forward
from training.loading import PairStore
from training.order import ClusterOrder, Ints
from training.specs import ClusterSampler


def phase_codes(name: str, results: PhaseResults, store: PairStore, clusters: int, seed: int, source: str) -> Ints:
    """Code clusters * text cluster + image cluster of every pair, by the features of one phase's result.

    Kept for a restart.
    """
    uri = storage.join(results.state_uri, f"clusters-{name}-{clusters}.npy")
    if storage.exists(uri):
        return np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)  # type: ignore[no-any-return]
    from sklearn.cluster import MiniBatchKMeans  # a training without clusters need not wait for it

    towers = results.towers(name)
    distinct = store.captions[source].fill_null("").dictionary_encode()
    texts = towers.encode_texts(distinct.dictionary.to_pylist())[distinct.indices.to_numpy()]
    images = embed_rows(Forward(towers), store, range(len(store)), torch.get_num_threads())
    image, text = (
        MiniBatchKMeans(clusters, random_state=seed, n_init=3, batch_size=4096).fit_predict(x) for x in (images, texts)
    )
    codes: Ints = clusters * text.astype(np.int64) + image
    sink = io.BytesIO()
    np.save(sink, codes)
    storage.write_bytes(uri, sink.getvalue())
    return codes


def cluster_order(
    spec: ClusterSampler, results: PhaseResults, store: PairStore, size: int, seed: int, source: str, rank: int
) -> ClusterOrder:
    """Order whose batches come from one accumulated cell; rank 0 clusters, the others get the codes.

    Raises:
        ModelError: no cell holds a whole batch.
    """
    cells: Ints = np.zeros(len(store), np.int64)
    for name in spec.phases:
        codes = [phase_codes(name, results, store, spec.clusters, seed, source) if rank == 0 else None]
        if dist.is_initialized():
            dist.broadcast_object_list(codes)
        assert codes[0] is not None
        cells = cells * spec.clusters**2 + codes[0]
    order = ClusterOrder(cells, seed, size)
    if not order.members:
        largest = int(np.bincount(np.unique(cells, return_inverse=True)[1]).max())
        raise ModelError(
            f"sampler `cluster`: the largest of {len(np.unique(cells))} cells has {largest} pairs; "
            f"lower global_batch_size {size} or clusters"
        )
    return order
