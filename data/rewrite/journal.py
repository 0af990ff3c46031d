"""What the LLM has answered so far, on disk as it comes, so that a killed rewrite asks nothing twice.

A line is one answer: {"key": ..., "text": ...}. On a path, lines are appended to one file; on object storage, which
has no append, every batch is an object of its own. A torn last line is what a kill leaves: it is asked again.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from data import storage

_REMOTE_BATCH = 64


class Journal:
    """Answers by key. Use it as a context; `add` from one thread."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.normalise(uri)
        self.answers: dict[str, str] = {}
        self._pending: list[str] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        names = [name for name, _ in storage.list_files(self.uri) if name.endswith(".jsonl")]
        for name in names:
            self._read(storage.read_bytes(storage.join(self.uri, name)))
        self._batches = len(names)
        if storage.is_local(self.uri):
            path = Path(self.uri, "answers.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            is_torn = path.exists() and not path.read_bytes().endswith(b"\n")
            self._file = path.open("ab", buffering=0)
            self._file.write(b"\n" if is_torn else b"")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
        else:
            self._put()

    def add(self, key: str, text: str) -> None:
        """Keep an answer."""
        self.answers[key] = text
        line = json.dumps({"key": key, "text": text})
        if self._file:
            self._file.write(line.encode() + b"\n")
            return
        self._pending.append(line)
        if len(self._pending) >= _REMOTE_BATCH:
            self._put()

    def _put(self) -> None:
        if self._pending:
            content = "\n".join(self._pending).encode() + b"\n"
            storage.write_bytes(storage.join(self.uri, f"{self._batches:06d}.jsonl"), content)
            self._batches, self._pending = self._batches + 1, []

    def _read(self, content: bytes) -> None:
        for line in content.split(b"\n"):
            try:
                answer = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            self.answers[answer["key"]] = answer["text"]
