"""What a training or embedding stage computes, in FLOPs, from sizes alone: what time scales with. No torch.

Model FLOPs: nothing that is computed twice counts, and captions count with their whole context, so these are as many
whatever the machine, the chunks and the captions.
"""

from collections.abc import Mapping

from data import storage
from data.artifacts import Artifact
from training.checkpoint_folder import CONFIG_NAME
from training.preflight import phase_sizes, sizes_of
from training.sizes import ModelSizes
from training.specs import EmbedSpec, FrozenModel, Phase, TrainSpec

Models = Mapping[str, ModelSizes | None]  # role -> sizes; None: not known


def models_of(parents: Mapping[str, Artifact]) -> dict[str, ModelSizes | None]:
    """Sizes of the checkpoints among a stage's parents, by role."""
    folders = {role: parent for role, parent in parents.items() if parent.record.kind == "checkpoint"}
    return {role: sizes_of(parent) for role, parent in folders.items() if storage.exists(parent.at(CONFIG_NAME))}


def training_flops(spec: TrainSpec, models: Models) -> int | None:
    """Model FLOPs of a whole training stage, frozen teachers included; None where a model's are not counted."""
    sizes = phase_sizes(spec, models.get("init"))
    each = [_phase_flops(name, phase, sizes[name], models) for name, phase in spec.phases.items()]
    known = [flops for flops in each if flops is not None]
    return sum(known) if len(known) == len(each) else None


def _phase_flops(name: str, phase: Phase, sizes: ModelSizes | None, models: Models) -> int | None:
    trained = None if sizes is None else sizes.training_flops(None, *(None for _ in phase.view.texts))
    each = [trained, *(_teacher_flops(name, label, models) for label in _frozen(phase))]
    known = [flops for flops in each if flops is not None]
    return sum(known) * phase.steps * phase.global_batch_size if len(known) == len(each) else None


def _frozen(phase: Phase) -> list[str]:
    return [label for label, teacher in phase.teachers.items() if isinstance(teacher, FrozenModel)]


def _teacher_flops(phase: str, label: str, models: Models) -> int | None:
    sizes = models.get(f"phases.{phase}.teachers.{label}.checkpoint")
    return None if sizes is None else sizes.forward_flops()


def embedding_flops(spec: EmbedSpec, pairs: int, models: Models) -> int | None:
    """FLOPs of the pictures of so many pairs in all their views, and of a caption each."""
    sizes = models.get("checkpoint")
    if sizes is None or sizes.image is None or sizes.text is None:
        return None
    looks = len(spec.views) + spec.plain
    return pairs * (looks * sizes.image.flops() + spec.plain * sizes.text.flops(None))
