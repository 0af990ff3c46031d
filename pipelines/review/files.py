"""Where the files of a run lie: record, log, reports, W&B runs, what a failed stage left."""

from data import storage
from pipelines.here.workspace import log_path, wandb_folder
from pipelines.review.listing import Seen
from pipelines.review.sync import offline_runs
from pipelines.runs import run_folder


def files_of(seen: Seen) -> dict[str, str]:
    """What there is, by name."""
    record, folder = seen.record, run_folder(seen.root, seen.record.name)
    found = {"record": storage.join(folder, "run.json")}
    log = log_path(seen.root, record.name)
    if log.exists():
        found["log"] = str(log)
    for stage, report in seen.of_kind("report").items():
        found["report" if stage == "report" else f"report {stage}"] = report.at("report.html")
    found |= _wandb(seen)
    for sub, suffix in (("postmortem", ".html"), ("failures", ".json")):
        for name, _ in storage.list_files(storage.join(folder, sub)):
            if name.endswith(suffix):
                found[f"{sub} {name.removesuffix(suffix)}"] = storage.join(folder, sub, name)
    return found


def _wandb(seen: Seen) -> dict[str, str]:
    """The folder of the run's offline W&B runs, how many there are, and how many a server has."""
    folder = wandb_folder(seen.root)
    own = [one for one in offline_runs(folder) if one.run == seen.record.name]
    if not own:
        return {}
    synced = sum(one.is_synced for one in own)
    look = f"wandb leet {own[-1].folder}"
    return {"W&B": f"{len(own)} offline runs, {synced} synced, below {folder / 'wandb'}; look at one: {look}"}
