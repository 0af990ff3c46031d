"""SemDeDup (arXiv 2303.09540): pictures with a cosine above 1 - epsilon inside a k-means cluster of image_features.

The paper keeps of near pictures the one farthest from the centroid; here pairs form groups as with any other kind of
likeness, and `curate` keeps one of each by its own rule. Two near pictures in different clusters are not found: that is
the method's price for never comparing all with all.
"""

import numpy as np
import numpy.typing as npt

from data.curation.groups import Longs, alone, join_all, labels_of

Floats = npt.NDArray[np.float32]
_SAMPLE_ROWS = 100_000  # centroids are fitted on at most so many
_TILE_ROWS = 1024  # 4 MiB of cosines a tile


def link(features_ND: Floats, rows_P: Longs, clusters: int, epsilon: float, seed: int) -> Longs:
    """Partition of P pairs, sorted by uid.

    The result does not depend on the order of the feature set. One thread, because sums of floats depend on how they
    are shared out; another processor's rounding may still move a pair that stands at a bound.

    Args:
        features_ND: L2-normalised features, read row by row (a memory map).
        rows_P: row of each pair's feature, -1 for a pair without one, which is linked to nothing.
        clusters: of k-means; never more than there are features.
        epsilon: 1 - smallest cosine of a link.
        seed: of the sample and of k-means.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    parent, have = alone(len(rows_P)), np.flatnonzero(rows_P >= 0)
    if len(have):
        with threadpool_limits(limits=1):
            cluster = _assign(features_ND, rows_P[have], _centroids(features_ND, rows_P[have], clusters, seed))
            order = np.argsort(cluster, kind="stable")
            for members in np.split(have[order], np.flatnonzero(np.diff(cluster[order])) + 1):
                _link_cluster(parent, features_ND, rows_P, members, np.float32(1 - epsilon))
    labels: Longs = labels_of(parent)
    return labels


def _centroids(features_ND: Floats, rows: Longs, clusters: int, seed: int) -> Floats:
    """Centroids (K, D) of length 1."""
    from sklearn.cluster import MiniBatchKMeans

    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(len(rows), min(len(rows), _SAMPLE_ROWS), replace=False))
    sample = np.ascontiguousarray(features_ND[rows[chosen]], dtype=np.float32)
    fitted = MiniBatchKMeans(min(clusters, len(sample)), batch_size=4096, n_init=3, random_state=seed).fit(sample)
    centroids_KD = fitted.cluster_centers_.astype(np.float32)
    length_K1 = np.linalg.norm(centroids_KD, axis=1, keepdims=True)
    return centroids_KD / np.maximum(length_K1, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]


def _assign(features_ND: Floats, rows: Longs, centroids_KD: Floats) -> Longs:
    """Nearest centroid of each row, a tile at a time."""
    starts = range(0, len(rows), _TILE_ROWS)
    tiles = [(features_ND[rows[start : start + _TILE_ROWS]] @ centroids_KD.T).argmax(axis=1) for start in starts]
    cluster: Longs = np.concatenate(tiles)
    return cluster


def _link_cluster(parent: Longs, features_ND: Floats, rows_P: Longs, members: Longs, min_cosine: np.float32) -> None:
    """Link all pairs of a cluster above the cosine, tile against tile."""
    tiles = [members[start : start + _TILE_ROWS] for start in range(0, len(members), _TILE_ROWS)]
    for number, left in enumerate(tiles):
        left_TD = features_ND[rows_P[left]]
        for right in tiles[number:]:
            one, other = np.nonzero(left_TD @ features_ND[rows_P[right]].T > min_cosine)
            join_all(parent, left[one], right[other])
