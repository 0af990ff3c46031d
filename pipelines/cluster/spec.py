"""A cluster: where KFP answers, what pods ask for, what an hour costs. A file of the user's, never part of a recipe."""

import os
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from data import storage
from data.errors import RecipeError
from data.place import Place, Pod, RayJob
from data.spec import Spec
from pipelines.explain import explain
from pipelines.yaml_text import parse_yaml

# of a secret whose keys the cluster file does not list; each is optional, so a secret need not hold them all
KNOWN_KEYS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION",
    "AWS_DEFAULT_REGION", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "HF_TOKEN", "CLIPWORKS_LLM_API_KEY",
)  # fmt: skip


class Kfp(Spec):
    """The Kubeflow Pipelines API. A token comes from the environment variable that is named here, never from a file."""

    endpoint: str = Field(pattern="^https?://[^@]+$", description="e.g. http://127.0.0.1:8888 behind a port-forward")
    experiment: str = "clipworks"
    profile: str | None = Field(default=None, description="namespace of a multi-user KFP; None: a single-user one")
    namespace: str = Field(default="kubeflow", description="where KFP is installed; a single-user one runs tasks there")
    token_variable: str = Field(default="KFP_TOKEN", description="environment variable with a bearer token, if set")
    cookie_variable: str = Field(
        default="KFP_COOKIE", description="environment variable with the cookie of a signed-in session, if set"
    )
    ca_file: str | None = Field(default=None, description="certificates to trust, where the machine's do not do")

    def token(self) -> str | None:
        """The bearer token of this environment."""
        return os.environ.get(self.token_variable) or None

    def cookie(self) -> str | None:
        """The session cookie of this environment."""
        return os.environ.get(self.cookie_variable) or None


class Prices(Spec):
    """What an hour costs, for `plan --on`. An hour that no price is given for has no price; 0: it is free."""

    currency: str = "USD"
    gpu_hour: float = Field(default=0.0, ge=0)
    cpu_hour: float = Field(default=0.0, ge=0)
    gb_read: float = Field(default=0.0, ge=0, description="per 10^9 bytes read from storage")
    gb_written: float = Field(default=0.0, ge=0)


class Hardware(Spec):
    """What its pods stand on, for estimates of what has not been measured there."""

    gpu: str | None = Field(default=None, description="as its driver names it, e.g. NVIDIA H100 80GB HBM3")
    utilisation: float | None = Field(
        default=None, gt=0, le=1, description="part of the GPU's peak that training is taken to reach (MFU)"
    )


class Cluster(Spec):
    """Where `--on CLUSTER.yaml` runs."""

    name: str = Field(default="cluster", pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    kfp: Kfp
    namespace: str = Field(default="clipworks", description="of RayJobs and their secrets; tasks run where KFP says")
    place: Place
    task: Pod = Field(default=Pod(cpus=2, memory="8Gi"), description="pod of a stage that runs in its KFP task")
    tasks: dict[str, Pod] = Field(default_factory=dict, description="the same for single kinds of stages")
    ray: RayJob | None = Field(default=RayJob(), description="of stages that need Ray; None: Ray in their task's pod")
    launcher: Pod = Field(default=Pod(cpus=0.2, memory="1Gi"), description="task pod that watches a RayJob")
    service_account: str = Field(default="clipworks", description="of the tasks: may make RayJobs and read their pods")
    secrets: tuple[str, ...] = Field(default=("clipworks-s3",), description="Kubernetes secrets with AWS_* keys")
    secret_keys: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="secret -> its keys that a task gets as environment (KFP takes no secret whole); "
        "one secret may be left out: it gives the AWS_*, WANDB_*, HF_TOKEN and CLIPWORKS_LLM_API_KEY that it has",
    )
    volumes: dict[str, str] = Field(default_factory=dict, description="persistent volume claim -> where it is mounted")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="of a task's image; None: Kubernetes' own rule"
    )
    task_retries: int = Field(default=1, ge=0, description="new pods for a task whose pod failed or was evicted")
    task_seconds: int | None = Field(default=None, ge=1, description="longest life of a task's pod; None: no limit")
    kube_context: str | None = Field(
        default=None, description="of the kubeconfig, for logs and clean-up; None: the current one"
    )
    prices: Prices = Prices()
    hardware: Hardware = Hardware()

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
        self._check_pods()
        self.environment_keys()
        return self

    def _check_pods(self) -> None:
        """What KFP cannot ask for, for the pods of tasks, must not be left out in silence."""
        tasks = {f"tasks.{kind}": pod for kind, pod in self.tasks.items()}
        for name, pod in {"task": self.task, "launcher": self.launcher, **tasks}.items():
            if pod.disk:
                raise RecipeError(f"{name}.disk: {pod.disk!r}: KFP cannot ask for it; leave it out, or mount a volume")

    def environment_keys(self) -> dict[str, tuple[str, ...]]:
        """Secret -> its keys that become environment variables of a task, no variable twice.

        Two secrets for one variable would leave none: KFP's patch of the pod keeps the last entry of a name, also when
        that secret does not hold it.
        """
        for name in self.secret_keys:
            if name not in self.secrets:
                raise RecipeError(f"secret_keys.{name}: not one of `secrets` ({', '.join(self.secrets)}); add it there")
        unlisted = [name for name in self.secrets if name not in self.secret_keys]
        if len(unlisted) > 1:
            raise RecipeError(f"secret_keys: say which keys of {unlisted[1]!r} become environment; one may be left out")
        listed = [(key, name) for name, keys in self.secret_keys.items() for key in keys]
        for key, name in listed:
            twice = [other for known, other in listed if known == key and other != name]
            if twice:
                raise RecipeError(f"secret_keys: {key!r}: in {name!r} and in {twice[0]!r}; take it from one of them")
        taken = {key for key, _ in listed}
        rest = tuple(key for key in KNOWN_KEYS if key not in taken)
        return {**self.secret_keys, **({unlisted[0]: rest} if unlisted else {})}

    def task_namespace(self) -> str:
        """Where KFP runs the tasks: their account and their secrets must be there too."""
        return self.kfp.profile or self.kfp.namespace

    def whole_place(self) -> Place:
        """The place as its pods get it: with the RayJob of `ray`, in the cluster's namespace, with its secrets."""
        place = self.place
        if "cpus_per_worker" not in place.model_fields_set:  # its default is what this machine has
            cpus = (self.ray.worker if self.ray else self.tasks.get("train", self.task)).cpus
            place = place.model_copy(update={"cpus_per_worker": max(1, int(cpus))})
        if self.ray is None:
            return place
        shared: dict[str, Any] = {"namespace": self.namespace}
        for name in ("secrets", "volumes"):
            shared |= {} if name in self.ray.model_fields_set else {name: getattr(self, name)}
        return place.model_copy(update={"rayjob": self.ray.model_copy(update=shared)})


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


def read_cluster(path: str) -> Cluster:
    """Read a cluster file.

    Raises:
        RecipeError: there is no such file, or it is wrong.
    """
    try:
        text = storage.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not text"
        raise RecipeError(f"--on {path}: cannot read: {reason}; give a cluster's YAML file") from error
    return parse_cluster(parse_yaml(text, path), path)
