"""A cluster: where KFP answers, what pods ask for, what an hour costs. A file of the user's, never part of a recipe."""

import os
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from data import storage
from data.errors import RecipeError
from data.place import Place, Pod, RayJob
from data.spec import Spec
from pipelines.explain import explain


class Kfp(Spec):
    """The Kubeflow Pipelines API. A token comes from the environment variable that is named here, never from a file."""

    endpoint: str = Field(pattern="^https?://[^@]+$", description="e.g. http://127.0.0.1:8888 behind a port-forward")
    experiment: str = "clipworks"
    profile: str | None = Field(default=None, description="namespace of a multi-user KFP; None: a single-user one")
    token_variable: str = Field(default="KFP_TOKEN", description="environment variable with a bearer token, if set")
    ca_file: str | None = Field(default=None, description="certificates to trust, where the machine's do not do")

    def token(self) -> str | None:
        """The bearer token of this environment."""
        return os.environ.get(self.token_variable) or None


class Prices(Spec):
    """What an hour costs, for `plan --on`."""

    currency: str = "USD"
    gpu_hour: float = Field(default=0.0, ge=0)
    cpu_hour: float = Field(default=0.0, ge=0)
    gb_read: float = Field(default=0.0, ge=0, description="per 10^9 bytes read from storage")
    gb_written: float = Field(default=0.0, ge=0)


class Cluster(Spec):
    """Where `--on CLUSTER.yaml` runs."""

    name: str = Field(default="cluster", pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    kfp: Kfp
    namespace: str = Field(default="clipworks", description="of tasks, RayJobs and secrets")
    place: Place
    task: Pod = Field(default=Pod(cpus=2, memory="8Gi"), description="pod of a stage that runs in its KFP task")
    tasks: dict[str, Pod] = Field(default_factory=dict, description="the same for single kinds of stages")
    ray: RayJob | None = Field(default=RayJob(), description="of stages that need Ray; None: Ray in their task's pod")
    launcher: Pod = Field(default=Pod(cpus=0.2, memory="1Gi"), description="task pod that watches a RayJob")
    service_account: str = Field(default="clipworks", description="of the tasks: may make RayJobs and read their pods")
    secrets: tuple[str, ...] = Field(default=("clipworks-s3",), description="Kubernetes secrets with AWS_* keys")
    volumes: dict[str, str] = Field(default_factory=dict, description="persistent volume claim -> where it is mounted")
    prices: Prices = Prices()

    @model_validator(mode="after")
    def _check(self) -> Self:
        mounted = any(self.place.root.startswith(path.rstrip("/") + "/") for path in self.volumes.values())
        if storage.is_local(self.place.root) and not mounted:
            raise RecipeError(
                f"place.root: {self.place.root!r}: no other pod sees this folder; "
                "give an s3:// prefix, or a folder below one of `volumes`"
            )
        if self.place.rayjob is not None:
            raise RecipeError("place.rayjob: made of `ray` on a cluster; write its fields there")
        return self

    def whole_place(self) -> Place:
        """The place as its pods get it: with the RayJob of `ray`, in the cluster's namespace, with its secrets."""
        if self.ray is None:
            return self.place
        shared = {"namespace": self.namespace}
        for name in ("secrets", "volumes"):
            shared |= {} if name in self.ray.model_fields_set else {name: getattr(self, name)}
        return self.place.model_copy(update={"rayjob": self.ray.model_copy(update=shared)})


def parse_cluster(value: Any, origin: str) -> Cluster:
    """Make a cluster from plain values.

    Raises:
        RecipeError: one line with the file, the path, the value and the nearest right name.
    """
    if not isinstance(value, dict):
        raise RecipeError(f"{origin}: a cluster is a mapping with kfp, place and what its pods ask for")
    try:
        return Cluster.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error, Cluster, value)}") from error
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from error
