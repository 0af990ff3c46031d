"""`clipworks sweep`: what all trials share first, then the trials, drawn until they end; the same command goes on."""

import fcntl
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from data import storage
from data.artifacts import require_fingerprint
from data.errors import RecipeError, UserError
from data.events import read_events
from data.place import Place
from pipelines.here.local import StageError, ended_as_one, run_environment, run_recipe
from pipelines.here.workspace import Workspace, base_of, open_workspace
from pipelines.planning.plan import make_plan
from pipelines.render import EventTail, Renderer, make_renderer
from pipelines.runs import NAME
from pipelines.sweeps.board import Board, Trial
from pipelines.sweeps.driver import SAID
from pipelines.sweeps.honesty import check_uids
from pipelines.sweeps.result import finish, show, trial_line
from pipelines.sweeps.study import Study
from pipelines.sweeps.trial import concurrent_trials, pairs_of

_POLL_SECONDS = 0.5
_PROGRESS_SECONDS = 1.0
_LOG_LINES = 25
_LONGEST_NAME = 60
_RAY_VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class Session(NamedTuple):
    """One call of the command on a sweep."""

    study: Study
    name: str
    place: Place
    workspace: Workspace
    again: list[str]
    console: Console

    @property
    def folder(self) -> str:
        """Where the sweep's own files are."""
        return storage.join(self.place.root, ".sweeps", self.name)

    @property
    def events_uri(self) -> str:
        """What the trials say."""
        return storage.join(self.folder, "trials.jsonl")

    def board(self) -> Board:
        """Where every trial stands."""
        board = Board(self.study.settings, self.study.sweep.objective.mode)
        for event in read_events(self.events_uri):
            board.take(event)
        return board


def run_sweep(study: Study, place: Place, name: str, again: list[str], console: Console) -> Board:
    """Run a sweep, or what is left of it, and write its results.

    Raises:
        UserError: something the user can put right.
        StageError: no trial came to its end, or the driver failed.
        KeyboardInterrupt: the sweep was ended; every process of it too.
    """
    if not NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise RecipeError(f"--name {name!r}: use at most {_LONGEST_NAME} letters, digits, `.`, `_` and `-`")
    place = place.model_copy(update={"root": storage.normalise(place.root)})
    if "RAY_ADDRESS" not in os.environ:
        concurrent_trials(study.sweep, place)
    with _alone(place.root, name):
        session = Session(study, name, place, open_workspace(place.root, name, "sweep"), again, console)
        _claim(session)
        shared = _run_shared(session)
        board = session.board()
        if not board.is_over:
            try:
                _drive(session, shared)
            except KeyboardInterrupt:
                words = f"ended; what is complete stays. continue: {shlex.join(again)}"
                console.print(words, markup=False, highlight=False, soft_wrap=True)
                raise
            board = session.board()
        if not board.is_over:
            raise StageError(f"{board.count('waiting', 'running')} trials have not ended; {_hints(session)}", 1)
        finish(session.study, session.name, session.place, session.folder, board, session.again)
        show(session.study, session.folder, board, console)
    if board.best() is None:
        raise StageError(f"no trial came to its end; their failures are above\n{_hints(session)}", 1)
    return board


@contextmanager
def _alone(root: str, name: str) -> Iterator[None]:
    """One process at a time goes on with a sweep."""
    path = base_of(root) / ".logs" / name / "sweep.lock"
    with storage.explained(root, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecipeError(f"sweep {name!r} is running already; wait for it, or give --name") from error
        yield


def _claim(session: Session) -> None:
    """The folder is this very sweep's.

    Raises:
        RecipeError: another sweep has this name.
    """
    uri = storage.join(session.folder, "plan.json")
    sweep = {**session.study.sweep.model_dump(mode="json", by_alias=True), "recipe": session.study.recipe.to_dict(),
             "resources": session.study.sweep.share(session.place).model_dump(mode="json")}  # fmt: skip
    ours = json.loads(json.dumps(sweep))
    del ours["max_concurrent"]  # may change when it goes on
    if not storage.exists(uri):
        storage.write_json(uri, ours)
        return
    theirs = storage.read_json(uri)
    if theirs != ours:
        changed = ", ".join(key for key in ours if ours[key] != theirs.get(key))
        raise RecipeError(
            f"sweep {session.name!r}: there is one of this name below {session.place.root} with another {changed}; "
            "give this one another --name"
        )


def _run_shared(session: Session) -> dict[str, str]:
    """Run what all trials share; URIs of it by name. Proves that the objective's pairs judge nothing."""
    recipe = session.study.shared()
    if recipe is None:
        return {}
    plans = make_plan(recipe, session.place)
    if not all(plan.artifact for plan in plans):
        run_recipe(recipe, session.place, f"{session.name}-shared", session.again, session.console, session.name)
        plans = make_plan(recipe, session.place)
    made = {plan.name: require_fingerprint(session.place.root, str(plan.fingerprint)) for plan in plans}
    check_uids(session.study.held, list(session.study.compared), made)
    return {name: artifact.uri for name, artifact in made.items()}


def _drive(session: Session, shared: Mapping[str, str]) -> None:
    """Run the trials in a child process and draw until it ends."""
    sweep = session.study.sweep.model_dump(mode="json", by_alias=True)
    job = {
        "sweep": {**sweep, "recipe": session.study.recipe.to_dict(), "set": {}}, "name": session.name,
        "place": session.place.model_dump(mode="json"), "shared": dict(shared), "events": session.events_uri,
        "tune": storage.join(session.folder, "tune"), "ray": str(session.workspace.ray),
        "wandb": str(session.workspace.wandb),
    }  # fmt: skip
    session.workspace.job.write_text(json.dumps(job))
    board, tail = session.board(), EventTail(session.events_uri, time.time())
    drawing = _Drawing(session.study, session.name, board)
    with (
        ended_as_one(session.workspace, "pipelines.sweeps.driver", _environment()) as child,
        make_renderer(session.console) as renderer,
    ):
        while True:
            has_ended = child.poll() is not None  # asked before reading, so that the last events are read
            for event in tail.read():
                drawing.take(event, renderer)
            drawing.draw(renderer)
            if has_ended:
                break
            time.sleep(_POLL_SECONDS)
    if child.returncode:
        lines = Path(session.workspace.log).read_text(errors="replace").splitlines()[-_LOG_LINES:]
        end = "\n".join(lines)
        if child.returncode == UserError.exit_code and lines and lines[-1].startswith(SAID):
            raise StageError(f"{lines[-1].removeprefix(SAID)}\n{_hints(session)}", child.returncode)
        raise StageError(f"the sweep's driver ended (exit {child.returncode}):\n{end}\n{_hints(session)}", 1)


def _environment() -> dict[str, str]:
    """A run's environment; where the user's Ray is joined, with the user's key to it."""
    environment = run_environment()
    if "RAY_ADDRESS" in os.environ:
        for name in _RAY_VARIABLES:
            environment.pop(name, None)
        environment |= {name: os.environ[name] for name in _RAY_VARIABLES if name in os.environ}
    return environment


def _hints(session: Session) -> str:
    return f"log: {session.workspace.log}\ncontinue: {shlex.join(session.again)}"


class _Drawing:
    """Turns what trials say into one stage's progress: pairs seen by all of them, and who is best."""

    def __init__(self, study: Study, name: str, board: Board) -> None:
        self._name, self._board, self._last, self._has_begun = name, board, 0.0, False
        self._objective = study.sweep.objective.name
        self._pairs = [pairs_of(study, study.trial([values] * study.segments)) for values in study.settings]
        self._first: tuple[float, float] | None = None

    def take(self, event: Mapping[str, Any], renderer: Renderer) -> None:
        """Fold in one event; a trial that has ended gets a line."""
        trial = self._board.take(event)
        if trial is not None:
            self._say(renderer, trial)

    def _say(self, renderer: Renderer, trial: Trial) -> None:
        best = self._board.best_known()
        mark = "  (best so far)" if best is trial else ""
        text = f"{trial_line(trial, self._objective)}{mark}"
        renderer.show({"stage": self._name, "event": "message", "message": text})

    def draw(self, renderer: Renderer) -> None:
        """Show how far all trials are."""
        if time.monotonic() - self._last < _PROGRESS_SECONDS:
            return
        self._last = time.monotonic()
        if self._board.count("waiting") == len(self._board.trials):
            if not self._has_begun:
                renderer.show({"stage": self._name, "event": "message", "message": "starting Ray"})
            self._has_begun = True
            return
        board, ended = self._board, self._board.count("finished", "stopped", "failed")
        done = sum(trial.pairs for trial in board.trials)
        # a trial that ended early leaves its rest to nobody
        total = sum(
            trial.pairs if trial.state in ("finished", "stopped", "failed") else pairs
            for trial, pairs in zip(board.trials, self._pairs, strict=True)
        )
        best, running = board.best_known(), board.count("running")
        words = f"{ended} of {len(board.trials)} trials ended, {running} running"
        if best is not None:
            words += f", best {best.value:.4g} (trial {best.number})"
        progress = {"done": done, "total": max(total, done), "unit": "pairs", "rate": self._rate(done)}
        renderer.show({"stage": self._name, "event": "progress", "message": words, **progress})

    def _rate(self, done: int) -> float | None:
        now = time.monotonic()
        if self._first is None or done == self._first[1]:
            self._first = self._first or (now, done)
            return None
        return (done - self._first[1]) / (now - self._first[0])
