"""The recipe as one KFP pipeline: a task a stage, strings only. What is compiled is also what runs on this machine."""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from data.errors import RecipeError
from data.place import Place
from data.spec import canonical_json
from data.stage import StageSpec
from pipelines.cluster.spec import Cluster
from pipelines.cluster.task_pods import dress
from pipelines.recipe import Recipe


def config_json(spec: StageSpec) -> str:
    """A stage's config as the one string its task gets; keys keep their order, because phases and labels have one."""
    text = json.dumps(spec.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("{{$", r"\u007b{$")  # the same JSON; KFP would take the bare one for a placeholder of its own


def build_pipeline(
    recipe: Recipe, place: Place, cluster: Cluster | None = None, done: Mapping[str, str] | None = None, run: str = ""
) -> Callable[..., Any]:
    """Make the KFP pipeline of a recipe; its parameters are place and run, so that one compiled file serves any.

    Args:
        recipe: the stages.
        place: the default of the parameter, and the image.
        cluster: what the tasks' pods ask for there; None: what KFP gives.
        done: stages that are complete -> URI of their artifact, which takes the place of their task.
        run: the default of the parameter, and the pods' label; empty: the recipe's name.
    """
    from kfp import dsl

    complete, name = dict(done or {}), run or recipe.name

    def pipeline(place: str, run: str) -> None:
        uris: dict[str, Any] = dict(complete)
        for stage in recipe.order():
            if stage not in complete:
                task = _task(stage, recipe.stages[stage], uris, (place, run), image)
                if cluster:
                    dress(task, stage, recipe.stages[stage], cluster, where, name)
                uris[stage] = task.output

    image, where, default = place.image, place, canonical_json(place.model_dump(mode="json"))
    pipeline.__defaults__ = (default, name)
    made: Callable[..., Any] = dsl.pipeline(
        name=f"clipworks-{recipe.name.replace('_', '-')}", description=recipe.title
    )(pipeline)
    return made


def _task(name: str, spec: StageSpec, uris: Mapping[str, Any], where: tuple[Any, Any], image: str) -> Any:
    """Add a stage's task; its parents are the URIs that other tasks return."""
    component = getattr(import_module(f"components.{spec.kind}.component"), spec.kind)
    parents = "\n".join(f"{role}={uris[stage]}" for role, (stage, _) in spec.roles().items())
    place, run = where
    task = component(name=name, config=config_json(spec), parents=parents, place=place, run=run)
    task.set_display_name(name)
    task.set_caching_options(False)  # reuse is ours, by fingerprint: KFP's key does not know our code
    task.set_container_image(image)
    return task


def stages_of_tasks(pipeline_spec: Mapping[str, Any]) -> dict[str, str]:
    """KFP's name of a task (`embed-2`) -> our stage (`features`), of a compiled pipeline."""
    return {key: task["taskInfo"]["name"] for key, task in pipeline_spec["root"]["dag"]["tasks"].items()}


def compile_pipeline(recipe: Recipe, place: Place, path: Path, cluster: Cluster | None = None) -> None:
    """Write the IR YAML of a recipe, for a cluster with what its pods ask for there.

    Raises:
        RecipeError: the path cannot be written or is not a .yaml file.
    """
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise RecipeError(f"{path}: a compiled pipeline is a .yaml or .json file; change the name after -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise RecipeError(f"{path}: cannot write: {error.strerror}; choose another file after -o") from error
    from kfp import compiler

    compiler.Compiler().compile(build_pipeline(recipe, place, cluster), str(path))
