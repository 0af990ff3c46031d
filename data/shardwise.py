"""One piece of work a shard, on Ray Data or in this process: each finished shard is remembered, so a killed stage goes
on at the first missing one, and nothing depends on which worker did what, or when.
"""

import json
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from data import storage
from data.errors import ShardError, UserError, facts_of, located, locating
from data.stage import Work

Summary = dict[str, Any]
_TRIES = 5  # of a shard whose worker dies: Ray itself would go on for ever with one that ends every worker


def each_shard(
    work: Work, step: str, names: Sequence[str], do: Callable[[int], Summary], gpus: int = 0, unit: str = "shards"
) -> list[Summary]:
    """Call `do(number)` for every shard that is not finished yet; return all summaries in the order of `names`.

    `do` writes the shard's files below `work.out`, atomically, and returns a small JSON value, which is kept as restart
    state under the shard's name when everything it speaks of is written. It must be picklable and is called in any
    order, in any process, and again after a kill: the same number must write the same bytes. On Ray a worker has one
    CPU; where it needs `gpus`, it has so many of them and the CPUs of a worker with a GPU (`cpus_per_worker`).
    `unit` is what a person calls one of them.

    Raises:
        UserError: as `do` raised it.
    """
    uris = [storage.join(work.out.state_uri, step, f"{name}.json") for name in names]
    done = {name for name, _ in storage.list_files(storage.join(work.out.state_uri, step), recursive=True)}
    missing = [number for number, name in enumerate(names) if f"{name}.json" not in done]
    task = _Task(do, names, uris, unit.removesuffix("s"))
    made = len(names) - len(missing)
    work.events.progress(made, len(names), unit, step)
    place = work.place
    needs = {"num_cpus": place.cpus_per_worker, "num_gpus": gpus} if gpus else {"num_cpus": 1}
    for _ in _on_ray(task, missing, place.data_workers, needs) if place.data_workers else map(task, missing):
        made += 1
        work.events.progress(made, len(names), unit, step)
    return [storage.read_json(uri) for uri in uris]


class _Task:
    """One shard: do it, remember it."""

    def __init__(
        self, do: Callable[[int], Summary], names: Sequence[str], uris: Sequence[str], what: str = "shard"
    ) -> None:
        self.do, self.names, self.uris, self.what = do, names, uris, what

    def __call__(self, number: int) -> int:
        with locating(**{self.what: self.names[number]}):
            storage.write_json(self.uris[number], self.do(number))
        return number

    def on_worker(self, number: int, run: str) -> int:
        """The same in a process that may be ended by what it does; `run` names this attempt at the whole stage.

        Raises:
            ShardError: the worker died at this shard again and again.
        """
        begun = f"{self.uris[number]}.{run}"
        tries = storage.read_json(begun) if storage.exists(begun) else 0
        if tries >= _TRIES:
            told = f"shard {self.names[number]}: {tries} workers died at it, of memory or of what it holds; "
            told += "give workers more memory, or take the shard out of the pool"
            raise located(ShardError(told), **{self.what: self.names[number]})
        storage.write_json(begun, tries + 1)
        self(number)
        storage.remove(begun)
        return number


def _on_ray(task: _Task, numbers: Sequence[int], workers: int, needs: dict[str, int]) -> Any:
    """Run the task on so many of Ray's workers; a worker that is lost is replaced, its shard done again."""
    import ray.data

    from data.ray import connect

    if not numbers:
        return
    connect()
    run = uuid.uuid4().hex[:8]

    def row(entry: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"number": task.on_worker(int(entry["number"]), run), "error": "", "kind": "", "facts": "{}"}
        except UserError as error:  # Ray would wrap it in pages of its own
            facts = json.dumps(facts_of(error))
            return {"number": -1, "error": str(error), "kind": type(error).__name__, "facts": facts}

    logging.getLogger("ray.data").setLevel(logging.WARNING)  # our events tell how far we are; its import resets this
    rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    pool = ray.data.TaskPoolStrategy(size=min(workers, len(numbers)))
    for entry in rows.map(row, compute=pool, **needs).iter_rows():
        if entry["error"]:
            from data import errors

            raise located(getattr(errors, entry["kind"], UserError)(entry["error"]), **json.loads(entry["facts"]))
        yield entry["number"]
