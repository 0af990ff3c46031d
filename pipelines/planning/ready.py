"""What `clipworks preflight` says: for the place and for every training stage, what fits and what does not."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from data.artifacts import Artifact
from data.errors import ModelError
from data.place import Place
from pipelines.planning.plan import StagePlan, make_plan
from pipelines.recipe import Recipe
from training.checkpoint_folder import open_folder
from training.findings import Finding
from training.preflight import pairs_of, phase_sizes, place_findings, sizes_of, stage_findings
from training.resources import Models
from training.sizes import ModelSizes, count
from training.specs import ModelSpec, TrainSpec

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {"ok": "green", "warning": "yellow", "unfit": "red"}


class Section(NamedTuple):
    """Findings about one thing: `place`, or a stage by its name."""

    name: str
    findings: list[Finding]


def look(recipe: Recipe, place: Place) -> list[Section]:
    """Look at the place and at every training stage, parents first; artifacts that exist already give the numbers."""
    place_section = Section("place", place_findings(place))
    if any(finding.level == "unfit" and finding.what == "root" for finding in place_section.findings):
        return [place_section]  # what is below the root cannot be read either
    plans = {plan.name: plan for plan in make_plan(recipe, place)}
    sizes: dict[str, ModelSizes | None] = {}
    return [place_section, *_stage_sections(recipe, place, plans, sizes)]


def _stage_sections(
    recipe: Recipe, place: Place, plans: dict[str, StagePlan], sizes: dict[str, ModelSizes | None]
) -> Iterator[Section]:
    """Sections of the training stages; `sizes` collects the model of every checkpoint stage on the way."""
    for name in recipe.order():
        spec, artifact = recipe.stages[name], plans[name].artifact
        if not isinstance(spec, ModelSpec | TrainSpec):
            continue
        roles = {role: stage for role, (stage, _) in spec.roles().items()}
        models = {role: sizes.get(stage) for role, stage in roles.items()}
        try:
            sizes[name] = result_sizes(spec, artifact, models)
            if isinstance(spec, TrainSpec):
                parents = {role: plans[stage].artifact for role, stage in roles.items()}
                yield Section(name, _findings(spec, place, parents, models))
        except ModelError as error:
            sizes[name] = None
            yield Section(name, [Finding("unfit", "model", str(error))])


def result_sizes(spec: ModelSpec | TrainSpec, artifact: Artifact | None, models: Models) -> ModelSizes | None:
    """Sizes of the checkpoint that a stage made or will make."""
    if artifact is not None:
        return sizes_of(artifact)
    if isinstance(spec, ModelSpec) and spec.folder is not None:
        folder = open_folder(spec.folder)
        return count(folder.config["model_cfg"], folder.layout)
    if isinstance(spec, ModelSpec):
        return None if spec.architecture is None else count(spec.architecture)
    return list(phase_sizes(spec, models["init"]).values())[-1]


def _findings(spec: TrainSpec, place: Place, parents: dict[str, Artifact | None], models: Models) -> list[Finding]:
    made = {role: artifact for role, artifact in parents.items() if artifact is not None}
    return stage_findings(spec, place, pairs_of(made), models)


def fits(sections: list[Section]) -> bool:
    """True when nothing is unfit."""
    return all(finding.level != "unfit" for section in sections for finding in section.findings)


def as_json(sections: list[Section]) -> dict[str, Any]:
    """The findings as plain values."""
    plain = {
        section.name: [
            {"level": f.level, "what": f.what, "said": f.said, "fix": f.fix, "values": dict(f.values)}
            for f in section.findings
        ]
        for section in sections
    }
    return {"fits": fits(sections), "sections": plain}


def show(sections: list[Section], console: "Console") -> None:
    """Print a short table for each section on a terminal, plain lines elsewhere."""
    for section in sections:
        console.print(section.name, style="bold", markup=False, highlight=False)
        if console.is_terminal:
            console.print(_table(section.findings))
            continue
        for finding in section.findings:
            console.print(
                f"  {finding.level:<8} {finding.what:<9} {finding.line()}",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def _table(findings: list[Finding]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 1))
    for finding in findings:
        table.add_row(Text(finding.level, _COLOURS[finding.level]), Text(finding.what), Text(finding.line()))
    return table
