"""A teacher's features computed once by `embed`, looked up by uid and caption."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data.artifacts import Artifact
from data.features import FeatureSet
from training.loading import Batch
from training.specs import CachedFeatures


class CachedTargets:
    """Teacher features without running the teacher; pictures as the teacher saw them, without augmentation."""

    def __init__(self, spec: CachedFeatures, parents: Mapping[str, Artifact]) -> None:
        del spec
        features = parents["features"]
        self.features = FeatureSet(features)
        self.scale = torch.tensor(float(features.record.metrics["logit_scale"]))

    def targets(self, batch: Batch) -> Mapping[str, Tensor]:
        """Rows of the cache; ArtifactError names a uid or caption that was not embedded."""
        images = np.asarray(self.features.images[self.features.image_rows(batch.uids)])
        texts = np.asarray(self.features.text_features[self.features.text_rows(batch.captions)])
        device = batch.image.device
        return {
            "image_features": torch.from_numpy(images).to(device),
            "text_features": torch.from_numpy(texts).to(device),
            "logit_scale": self.scale.to(device),
        }

    def digest(self) -> str:
        """Hash of the cached features."""
        state = hashlib.sha256(np.ascontiguousarray(self.features.images).tobytes())
        state.update(np.ascontiguousarray(self.features.text_features).tobytes())
        return state.hexdigest()
