"""What a sweep leaves: a table, `sweep.json`, the winner as a recipe, a page, a record a trial; no half artifact."""

import time
from typing import Any

from rich.console import Console
from rich.table import Table

from data import storage
from data.artifacts import Output
from data.errors import BusyError
from data.place import Place
from pipelines.planning.plan import StagePlan, make_plan
from pipelines.runs import RunRecord, StageOfRun, State, run_folder, versions, write_run
from pipelines.sweeps.board import Board, Trial
from pipelines.sweeps.study import Study
from pipelines.sweeps.trial import trial_place
from pipelines.sweeps.tuning import trial_name
from pipelines.yaml_text import to_yaml

_RUN_STATES: dict[str, State] = {"finished": "finished", "stopped": "cancelled", "failed": "failed"}
WINNER_PLACE = "winner.place.yaml"
WINNER, TABLE, PAGE = "winner.yaml", "sweep.json", "sweep.html"


def finish(study: Study, name: str, place: Place, folder: str, board: Board, again: list[str]) -> None:
    """Write the sweep's results, and remove what stopped trials had begun and Tune's own state."""
    for trial in board.trials:
        plans = make_plan(study.trial(_whole(study, trial)), place)
        if trial.state != "finished":
            _remove_begun(plans, place.root)
        _write_record(study, name, place, trial, plans, again)
    best = board.best()
    if best is not None:
        text = winner_yaml(study, name, best)
        storage.write_bytes(storage.join(folder, WINNER), text.encode())
        storage.write_bytes(storage.join(folder, WINNER_PLACE), winner_place_yaml(study, place).encode())
    storage.write_json(storage.join(folder, TABLE), as_json(study, name, board))
    from pipelines.sweeps import page

    page.write(study, name, board, folder, place)
    storage.remove(storage.join(folder, "tune"))


def _whole(study: Study, trial: Trial) -> list[Any]:
    """The trial's history, as long as a whole trial's: what a failed member would have run next has its last values."""
    return [*trial.history, *[trial.values] * study.segments][: study.segments]


def _remove_begun(plans: list[StagePlan], root: str) -> None:
    """Remove half-written artifacts and restart states of a trial that will not go on."""
    for plan in plans:
        if plan.artifact is not None or plan.fingerprint is None:
            continue
        out = Output(root, plan.name, plan.fingerprint)
        if not (storage.exists(out.uri) or storage.exists(out.state_uri)):
            continue
        try:
            with out.lock():
                storage.remove(out.uri)
                storage.remove(out.state_uri)
        except BusyError:  # somebody else's run is making it now
            continue


def _write_record(
    study: Study, name: str, place: Place, trial: Trial, plans: list[StagePlan], again: list[str]
) -> None:
    """The trial as a run, for `clipworks runs`."""
    run, shared = trial_name(name, trial.number), study.shared_names()
    if storage.exists(storage.join(run_folder(place.root, run), "run.json")):
        return
    stages = {
        plan.name: StageOfRun(
            fingerprint=plan.fingerprint, artifact=plan.artifact_name, reused=plan.name in shared
        )
        for plan in plans
    }  # fmt: skip
    missing = next((plan.name for plan in plans if plan.artifact is None), None)
    write_run(
        place.root,
        RunRecord(
            name=run, state=_RUN_STATES[trial.state], started=trial.started or time.time(), ended=trial.ended,
            command=tuple(again), recipe=study.trial(_whole(study, trial)).to_dict(),
            place=trial_place(place, study.sweep.share(place)).model_dump(mode="json"), stages=stages,
            versions=versions(), group=name, failed_stage=missing if trial.state == "failed" else None,
        ),
    )  # fmt: skip


def winner_yaml(study: Study, name: str, best: Trial) -> str:
    """The whole recipe with the winner's values, as a file that `clipworks run` accepts."""
    recipe, objective = study.winner(best.history), study.sweep.objective
    lines = [
        f"Winner of sweep {name}: trial {best.number} of {len(study.settings)}, {objective.name} {best.value!r},",
        f"chosen on split {study.held.name!r}, which judges nothing.",
        f"To the last digit with as many threads and ranks as its trial had: --place {WINNER_PLACE} beside this file.",
        *(f"{path}: {value}" for path, value in best.values.items()), "",
    ]  # fmt: skip
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + recipe.to_yaml()


def winner_place_yaml(study: Study, place: Place) -> str:
    """What of a trial's place can change the last digits, as a place file: sums come in another order elsewhere."""
    ours = trial_place(place, study.sweep.share(place)).model_dump(mode="json")
    names = ("ranks", "train_workers", "cpus_per_worker", "gpus_per_worker", "parallel", "precision", "compile",
             "activation_checkpointing")  # fmt: skip
    return to_yaml({name: ours[name] for name in names})


def as_json(study: Study, name: str, board: Board) -> dict[str, Any]:
    """The sweep as plain values."""
    sweep, best = study.sweep, board.best()
    return {
        "name": name,
        "recipe": study.recipe.name,
        "objective": {**sweep.objective.model_dump(mode="json"), "chosen_on": study.held._asdict()},
        "space": {path: dimension.model_dump(mode="json", by_alias=True, exclude_none=True)
                  for path, dimension in sweep.space.items()},
        "scheduler": sweep.scheduler.model_dump(mode="json", exclude_none=True),
        "seed": sweep.seed,
        "winner": best.number if best else None,
        "trials": [_row(rank, trial, name) for rank, trial in enumerate(board.ranked(), 1)],
    }  # fmt: skip


def _row(rank: int, trial: Trial, name: str) -> dict[str, Any]:
    return {
        "rank": rank, "trial": trial.number, "run": trial_name(name, trial.number), "state": trial.state,
        "value": trial.value, "samples_seen": trial.samples, "values": trial.values, "message": trial.message,
        "lineage": trial.lineage, "curve": [[at, value] for at, value in sorted(trial.curve.items())],
    }  # fmt: skip


def why_ended(trial: Trial) -> str:
    """Why a trial ended, in a few words."""
    return {"finished": "finished", "stopped": "stopped early", "failed": f"failed: {trial.message}"}.get(
        trial.state, trial.state
    )


def trial_line(trial: Trial, objective: str) -> str:
    """A trial that has ended, in a line."""
    value = "" if trial.value is None else f"  {objective} {trial.value:.4g}"
    return f"trial {trial.number} {why_ended(trial)} at {trial.samples:,} pairs{value}"


def shown(value: Any) -> str:
    """A value in a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def labels(paths: list[str]) -> dict[str, str]:
    """The shortest endings that tell fields apart."""
    found = {}
    for path in paths:
        keys = path.split(".")
        endings = [".".join(keys[-count:]) for count in range(1, len(keys) + 1)]
        found[path] = next(
            end for end in endings if sum(other == end or other.endswith(f".{end}") for other in paths) == 1
        )
    return found


def show(study: Study, folder: str, board: Board, console: Console) -> None:
    """Print the table, and where everything is."""
    names, objective = labels(list(study.sweep.space)), study.sweep.objective
    table = Table(box=None, pad_edge=False)
    for heading in ("rank", "trial", *names.values(), objective.name, "pairs seen", "why it ended"):
        is_number = heading in ("rank", "trial", "pairs seen", objective.name)
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for rank, trial in enumerate(board.ranked(), 1):
        name = f"{trial.number} (recipe)" if trial.number == 0 else str(trial.number)
        value = "-" if trial.value is None else f"{trial.value:.5g}"
        values = (shown(trial.values[path]) for path in names)
        table.add_row(str(rank), name, *values, value, f"{trial.samples:,}", why_ended(trial))
    console.print()
    console.print(table)
    best = board.best()
    if best is None:
        return
    if len(best.lineage) > 1:
        console.print(f"\ntrial {best.number} in segments, its own or those that it copied:")
        for number, entry in enumerate(best.lineage, 1):
            said = ", ".join(f"{names[path]} {shown(value)}" for path, value in entry["values"].items())
            console.print(f"  {number}: {said}  {entry['value']:.5g}", markup=False, highlight=False, soft_wrap=True)
    winner = f"{storage.join(folder, WINNER)} --place {storage.join(folder, WINNER_PLACE)}"
    for line in (
        f"\nwinner: trial {best.number}, {objective.name} {best.value:.6g}; run it: clipworks run {winner}",
        f"table: {storage.join(folder, TABLE)}",
        f"page: {storage.join(folder, PAGE)}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
