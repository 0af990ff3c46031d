"""The initial checkpoint of a training stage. No torch."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data.spec import Operational
from data.stage import StageFunction, StageSpec


class ModelSpec(StageSpec):
    """An initial checkpoint: an open_clip architecture, random or pretrained, or a checkpoint that exists already.

    `artifact` takes a finished checkpoint as it is, so that all that was made of it is reused and its training stays
    known; `folder` copies one from elsewhere.
    """

    MAKES: ClassVar[str] = "checkpoint"
    ON_RAY: ClassVar[bool] = False
    kind: Literal["model"] = "model"
    architecture: str | dict[str, Any] | None = Field(
        default=None, description="open_clip model name, or an open_clip model config"
    )
    pretrained: str | None = Field(default=None, description="open_clip tag (needs a hub) or a local .safetensors file")
    seed: int = 0
    artifact: Annotated[str | None, Operational] = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="fingerprint of a finished checkpoint below the root"
    )
    folder: Annotated[str | None, Operational] = Field(
        default=None, description="checkpoint folder: of another root, or any in open_clip's local-dir layout"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("architecture", "artifact", "folder") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} given; give one of architecture, artifact, folder")
        if self.pretrained is not None and self.architecture is None:
            raise ValueError("pretrained goes with an architecture only; remove it")
        return self

    @property
    def weights_file(self) -> str | None:
        """`pretrained` where it is a file."""
        return self.pretrained if self.pretrained and self.pretrained.endswith(".safetensors") else None

    def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int:
        """Its time does not depend on pairs."""
        del parents
        return 0

    def source_identity(self) -> dict[str, Any]:
        """Digests of the folder or the weights file that it reads."""
        from training.checkpoint_folder import open_folder, weights_file_identity

        if self.folder is not None:
            return open_folder(self.folder).identity()
        return {"weights": weights_file_identity(self.weights_file)} if self.weights_file else {}

    def resolved(self) -> dict[str, Any]:
        """The config that counts: of a weights file its name and content, not its path."""
        config = super().resolved()
        return {**config, "pretrained": self.weights_file.rpartition("/")[2]} if self.weights_file else config

    def fingerprint(self, parents: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str:
        """That of the artifact itself, where it names one."""
        return self.artifact or super().fingerprint(parents, config)

    def build(self) -> StageFunction:
        """The function that makes the initial checkpoint."""
        from training.towers import run

        return run
