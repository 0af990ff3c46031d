"""`clipworks sync`: offline W&B runs of a root to a W&B server, those that made an artifact before those that used it.

The order is what makes the lineage true: the server takes the first run that logs an artifact for the one that made it.
Whether a run arrived is read from the mark that W&B leaves beside it, never from an exit code: `wandb sync` ends with 0
after a refused key, and asks a server that is away again and again for many minutes.
"""

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import BackendError, RecipeError, nearest
from training.wandb_runs import read_notes

_PROBE_SECONDS = 15.0
_MOST_WORDS = 160
_LOGIN = "set WANDB_API_KEY, or `wandb login`"
# patience of W&B's own client: by default it tries for a quarter of an hour, run after run
_PATIENCE = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "5", "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "10",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "5", "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "10",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "5", "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "10",
}  # fmt: skip


class Offline(NamedTuple):
    """One offline W&B run: a stage of a run."""

    folder: Path
    run: str
    stage: str
    makes: str
    uses: tuple[str, ...]

    @property
    def is_synced(self) -> bool:
        """Whether a server has all of it."""
        return any(self.folder.glob("*.wandb.synced"))


class Server(NamedTuple):
    """Where W&B answers, and the key for it."""

    url: str
    key: str


def offline_runs(folder: Path, run: str | None = None) -> list[Offline]:
    """Offline runs below a W&B folder, oldest first, of one run of ours or of all.

    Raises:
        RecipeError: no run of this name has any.
    """
    found = [
        Offline(path, note.get("run", ""), note.get("stage", path.name), note.get("fingerprint", ""),
                tuple(note.get("parents", ())))
        for path, note in read_notes(folder)
    ]  # fmt: skip
    if run is None:
        return found
    known = sorted({one.run for one in found if one.run})
    if run not in known:
        hint = nearest(run, known) or f"; W&B runs are of {', '.join(known) or 'none'}"
        raise RecipeError(f"run {run!r}: no W&B run of it below {folder}{hint}")
    return [one for one in found if one.run == run]


def levels(runs: list[Offline]) -> list[list[Offline]]:
    """Runs in groups: each comes behind those that made what it uses."""
    makers: dict[str, list[int]] = {}
    for number, one in enumerate(runs):
        if one.makes:
            makers.setdefault(one.makes, []).append(number)
    depth: dict[int, int] = {}

    def depth_of(number: int) -> int:
        if number not in depth:
            depth[number] = 0  # an artifact is no ancestor of itself; a broken note must not send us in circles
            before = [maker for print_ in runs[number].uses for maker in makers.get(print_, ())]
            same = [maker for maker in makers.get(runs[number].makes, ()) if maker < number]  # the first made it
            depth[number] = 1 + max((depth_of(one) for one in [*before, *same]), default=-1)
        return depth[number]

    grouped: dict[int, list[Offline]] = {}
    for number, one in enumerate(runs):
        grouped.setdefault(depth_of(number), []).append(one)
    return [grouped[at] for at in sorted(grouped)]


def find_server() -> Server:
    """The server and key that W&B itself would use: environment, settings files, netrc.

    Raises:
        BackendError: there is no key.
    """
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    url = settings.base_url.rstrip("/")
    key = settings.api_key or os.environ.get("WANDB_API_KEY") or wbauth.read_netrc_auth(host=url)
    if not key:
        raise BackendError(f"W&B: no API key for {url}; {_LOGIN}, and WANDB_BASE_URL for a server of your own")
    return Server(url, key)


def check_server(server: Server) -> None:
    """Ask who we are, once and with a deadline.

    Raises:
        BackendError: nobody answers, or not to this key.
    """
    query = json.dumps({"query": "query Viewer { viewer { id } }", "operationName": "Viewer"}).encode()
    word = base64.b64encode(f"api:{server.key}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {word}"}
    request = urllib.request.Request(f"{server.url}/graphql", query, headers)  # noqa: S310 - the user's own server
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS) as answer:  # noqa: S310
            said = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise BackendError(f"W&B: {server.url} refuses the API key (HTTP {error.code}); {_LOGIN}") from None
        raise BackendError(f"W&B: {server.url} answers HTTP {error.code}; try again later, or check it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        text = "no JSON, so not a W&B server" if isinstance(error, ValueError) else str(reason)
        raise BackendError(
            f"W&B: {server.url} does not answer ({text}); check WANDB_BASE_URL and the network"
        ) from None
    if not isinstance(said, dict) or not isinstance(said.get("data"), dict):
        raise BackendError(f"W&B: {server.url} answers, but not as W&B does; check WANDB_BASE_URL")
    if "viewer" in said["data"] and said["data"]["viewer"] is None:
        raise BackendError(f"W&B: {server.url} does not know the API key; {_LOGIN}")


def upload(runs: list[Offline], server: Server, folder: Path) -> dict[Path, str]:
    """Sync these runs side by side; return what went wrong by run, nothing for those that arrived."""
    command = [sys.executable, "-P", "-m", "wandb", "sync", *(str(one.folder) for one in runs)]
    environment: Mapping[str, str] = {
        **_PATIENCE, **os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key,
    }  # fmt: skip
    # W&B writes a log of its own to ./wandb of the folder it is called in
    done = subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = (done.stderr + done.stdout).replace(server.key, "***").splitlines()
    return {one.folder: _reason(one, lines) for one in runs if not one.is_synced}


def _reason(one: Offline, lines: list[str]) -> str:
    """What W&B said of a run: its last line about it, else its last error."""
    ident = one.folder.name.rpartition("-")[2]
    about = [line for line in lines if f"/{ident}]" in line and "View run" not in line]
    errors = [line for line in lines if "ERROR" in line or line.startswith("Error")]
    said: list[str] = (errors or about or lines)[-1:]
    return said[0].removeprefix("wandb: ").strip()[:_MOST_WORDS] if said else "W&B said nothing"


def sync(folder: Path, run: str | None, say: Any) -> int:
    """Sync what is not synced yet; `say` gets a line a run. Returns how many did not arrive."""
    runs = offline_runs(folder, run)
    pending = [one for one in runs if not one.is_synced]
    if not pending:
        say(f"{folder}: {len(runs)} W&B runs, nothing to sync")
        return 0
    server = find_server()
    check_server(server)
    say(f"{folder}: {len(pending)} of {len(runs)} W&B runs to {server.url}")
    failed = 0
    for level in levels(pending):
        problems = upload(level, server, folder)
        failed += len(problems)
        for one in level:
            say(f"{one.run or '?'}/{one.stage:<24} {problems.get(one.folder, 'synced')}")
    say(f"{len(pending) - failed} synced, {failed} not" + ("; the same command tries those again" if failed else ""))
    return failed
