"""The processes of a local run's steps, forked from one that has done their imports already.

Importing torch and open_clip takes 9 s and more on two cores, and a run of twenty stages would pay it a dozen times. So
a server process imports them once, while the first stages run, and every step is a fork of it: a process of its own,
killed like any other. A step that needs neither is the fork of a server that imported next to nothing. Only modules
are imported before a fork whose threads survive one: OpenBLAS makes its own anew, pyarrow's is jemalloc's, which does
too, torch has none. Our own training and embedding come along: they take 2 s of each of a hundred short steps.
"""

import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from components.runtime import end_with_parent

_EXECUTOR = "kfp.dsl.executor_main"
_LIGHT = ("kfp.dsl",)
_HEAVY = ("kfp.dsl", "torch", "open_clip", "training.fit", "training.embed")
_HEAVY_KINDS = ("model", "train", "embed")
_MODULE_FLAG, _KIND_FLAG = "--component_module_path", "--function_to_execute"


class Steps:
    """Runs steps of kfp's local runner; to be used as a context."""

    def __init__(self, scratch: Path, kinds: Sequence[str]) -> None:
        """`scratch` is a folder for the components' files; `kinds` are those of the stages that may come."""
        self._scratch = scratch
        self._servers = {False: _Server(scratch, _LIGHT)}
        if any(kind in _HEAVY_KINDS for kind in kinds):
            self._servers[True] = _Server(scratch, _HEAVY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers.values():
            server.close()

    def run(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Stands in for `run_local_subprocess` of kfp: run the step, return its exit code (below 0: its signal)."""
        source, arguments = _split(full_command)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            path = Path(folder, "ephemeral_component.py")
            path.write_text(source, encoding="utf-8")
            kind = arguments[arguments.index(_KIND_FLAG) + 1]
            server = self._servers.get(kind in _HEAVY_KINDS, self._servers[False])
            return server.run([_EXECUTOR, _MODULE_FLAG, str(path), *arguments], env_vars or {})


def _split(full_command: Sequence[str]) -> tuple[str, list[str]]:
    """The component's source and the executor's arguments of the shell command that kfp compiles for a component."""
    shell, flag, script, source, *arguments = full_command
    is_known = (shell, flag) == ("sh", "-ec") and f"-m {_EXECUTOR}" in script and _MODULE_FLAG in script
    assert is_known, "kfp's command for a local step has changed"
    return source, arguments


class _Server:
    """A process that imports, then forks a step at a time."""

    def __init__(self, scratch: Path, modules: Sequence[str]) -> None:
        """`scratch` is only there to be seen: by it a process list tells whose steps these are."""
        self._line, its = socket.socketpair()
        environment = {**os.environ, "_KFP_RUNTIME": "true"}  # without it kfp.dsl imports its compiler and client
        command = [sys.executable, "-P", "-m", "pipelines.here.steps", str(its.fileno()), str(scratch), *modules]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()], env=environment, stderr=subprocess.STDOUT
        )
        its.close()
        self._answers = self._line.makefile("r", encoding="utf-8")

    def run(self, arguments: list[str], variables: dict[str, str]) -> int:
        sys.stdout.flush()  # the step writes to the same log
        self._line.sendall(json.dumps([arguments, {**os.environ, **variables}]).encode() + b"\n")
        answer = self._answers.readline()
        if not answer:
            raise RuntimeError(f"the process that starts the steps ended (exit {self._process.wait()}); see the log")
        return int(answer)

    def close(self) -> None:
        """No more steps."""
        self._answers.close()
        self._line.close()
        self._process.wait()


def _serve(line: socket.socket, modules: Sequence[str]) -> None:
    """Import, then run a step for every request until the line is closed."""
    for module in modules:
        importlib.import_module(module)
    requests = line.makefile("r", encoding="utf-8")
    for request in requests:
        step = os.fork()
        if not step:
            line.close()
            _become(*json.loads(request))
            return
        code = os.waitstatus_to_exitcode(os.waitpid(step, 0)[1])
        line.sendall(f"{code}\n".encode())


def _become(arguments: list[str], variables: dict[str, str]) -> None:
    """Be the step, as if Python had been started with these arguments and variables; ends as that would."""
    end_with_parent()
    os.environ.clear()
    os.environ.update(variables | {"_KFP_RUNTIME": "true"})
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve on the socket whose number is the first argument; those behind the second are modules to import."""
    end_with_parent()
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[3:])


if __name__ == "__main__":
    main()
