"""S3 with patience: s3fs whose every request is tried again while the server is away, busy or slow, and then says so.

A server that answered this process before is waited for PATIENCE_SECONDS; one that never did, only for a moment, as its
address is most likely wrong. `CLIPWORKS_S3_PATIENCE_SECONDS` sets both, AWS_MAX_ATTEMPTS bounds the tries. Endpoint,
region and credentials are botocore's own: environment, files, the pod's role.

Registered with fsspec for `s3://` by data/storage.py, so that torch's distributed checkpoints are as patient.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from botocore import exceptions as boto  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS = 120.0, 8.0
PATIENCE_VARIABLE = "CLIPWORKS_S3_PATIENCE_SECONDS"
PART_BYTES = 16 << 20  # of a multipart upload and of a download: 4 at once are 64 MiB of memory
_PARTS_AT_ONCE = 4
_MOST_PARTS = 10_000  # S3's limit, hence larger parts above 160 GB
_MOST_REMOVED = 1000  # by one request
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.2, 8.0
_BUSY = (
    "SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequests", "RequestTimeout",
    "InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict",
    "XAmzContentSHA256Mismatch",
)  # fmt: skip
_NOT_IMPLEMENTED = ("NotImplemented", "501")
_LOST_UPLOAD = ("NoSuchUpload", "InvalidPart")  # of a server that was killed, or whose answer was lost


class NoAnswerError(ConnectionError):
    """The server did not answer, or could not, for as long as we waited."""


class PatientS3(S3FileSystem):  # type: ignore[misc]
    """s3fs with one rule for trying again, at the one door through which all its requests go."""

    retries = 8  # of a body that breaks off while it is read; about 10 s, on top of what each request waits for
    default_block_size = PART_BYTES
    heard_from: ClassVar[set[str]] = set()  # endpoints that answered
    given_up: ClassVar[set[str]] = set()  # endpoints waited for in vain: what says so must not wait as long again

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config = {
            "connect_timeout": 10,
            "read_timeout": 30,
            "max_pool_connections": 64,
            "retries": {"total_max_attempts": 1},  # ours below: botocore's count is spent in seconds
            **kwargs.pop("config_kwargs", {}),
        }
        kwargs.setdefault("max_concurrency", _PARTS_AT_ONCE)
        super().__init__(*args, config_kwargs=config, **kwargs)

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        await self.set_session()
        client = await self.get_s3(kwargs.get("Bucket"))
        call = getattr(client, method)
        arguments = self._get_s3_method_kwargs(call, *akwarglist, **kwargs)
        endpoint = str(client.meta.endpoint_url)
        waits = _Waits()
        while True:
            try:
                answer = await call(**arguments)
            except Exception as error:
                if isinstance(error, ClientError):
                    self.heard_from.add(endpoint)
                if not is_passing(error):
                    translated = translate_boto_error(error)
                    if translated is error:
                        raise
                    raise translated from error
                wait = waits.next(endpoint in self.heard_from, endpoint in self.given_up)
                if wait is None:
                    self.given_up.add(endpoint)
                    raise NoAnswerError(waits.told(error)) from error
                await asyncio.sleep(wait)
            else:
                self.heard_from.add(endpoint)
                self.given_up.discard(endpoint)
                return answer

    call_s3 = sync_wrapper(_call_s3)


class _Waits:
    """How long to wait before each further try of one request; None when it is enough."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.tries = 0

    def next(self, has_answered: bool, was_in_vain: bool) -> float | None:
        """Seconds until the next try: doubling, with jitter so that many processes do not come back as one."""
        self.tries += 1
        usual = PATIENCE_SECONDS if has_answered else FIRST_PATIENCE_SECONDS
        patience = float(os.environ.get(PATIENCE_VARIABLE) or usual)
        patience = min(patience, FIRST_PATIENCE_SECONDS) if was_in_vain else patience
        most = int(os.environ.get("AWS_MAX_ATTEMPTS") or 0)
        if time.monotonic() - self.began > patience or self.tries == most:
            return None
        # 2.0**32 s is past every limit; without the bound a long wait would overflow a float
        longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** min(self.tries - 1, 32))
        return random.uniform(longest / 2, longest)

    def told(self, error: Exception) -> str:
        """What it was, without what a server or an address might hold."""
        seconds = time.monotonic() - self.began
        what = _code(error) if isinstance(error, ClientError) else type(error).__name__
        what = f"HTTP {what}" if what.isdigit() else what  # an answer to HEAD has no body to tell more
        return f"{what} after {self.tries} tries in {seconds:.0f} s; check that the server is up, and AWS_ENDPOINT_URL"


def is_passing(error: Exception) -> bool:
    """True for what may be over in a moment: no connection, a time-out, 5xx, throttling."""
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return _code(error) in _BUSY or status == 429 or (status >= 500 and _code(error) not in _NOT_IMPLEMENTED)
    if isinstance(error, boto.SSLError):
        return False  # a certificate does not get better
    return isinstance(
        error, boto.ConnectionError | boto.HTTPClientError | ResponseParserError | ConnectionError | TimeoutError
    )


def _code(error: BaseException | None) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def code_of(error: BaseException) -> str:
    """S3's own code of an error that s3fs translated, such as `PreconditionFailed`; empty if it is none of S3's."""
    return _code(error) or _code(error.__cause__)


def create(fs: PatientS3, path: str, content: bytes) -> bool:
    """Put an object only if there is none; False where one is there. Where servers do not know how, look, then put.

    An object that holds just this content counts as ours: the answer to a first try may have been lost.
    """
    try:
        if _is_there(fs, path):  # for servers that take If-None-Match and do not obey it
            return bool(fs.cat_file(path) == content)
        fs.pipe_file(path, content, mode="create")
    except OSError as error:
        code = code_of(error)
        if code in ("PreconditionFailed", "412"):
            return bool(fs.cat_file(path) == content)
        if code not in _NOT_IMPLEMENTED:
            raise
        fs.pipe_file(path, content)
    return True


def _is_there(fs: PatientS3, path: str) -> bool:
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return False
    return True


def upload(fs: PatientS3, local: Path, path: str) -> None:
    """Put a file, in parts if it is large; begun again, once, where the server lost an upload it had begun."""
    part_bytes = max(PART_BYTES, -(-local.stat().st_size // _MOST_PARTS))
    try:
        fs.put_file(str(local), path, chunksize=part_bytes)
    except OSError as error:
        if code_of(error) not in _LOST_UPLOAD:
            raise
        fs.put_file(str(local), path, chunksize=part_bytes)


def download(fs: PatientS3, path: str, local: Path) -> None:
    """Get a file in ranges, some at once; a range that breaks off is asked for again."""
    size = int(fs.info(path)["size"])
    with local.open("wb") as stream, ThreadPoolExecutor(_PARTS_AT_ONCE) as reads:
        stream.truncate(size)

        def fetch(start: int) -> None:
            part = fs.cat_file(path, start=start, end=min(start + PART_BYTES, size))
            os.pwrite(stream.fileno(), part, start)

        list(reads.map(fetch, range(0, size, PART_BYTES)))


def entries(fs: PatientS3, path: str, recursive: bool, most: int = 0) -> Iterator[tuple[str, int | None]]:
    """Yield (relative name, bytes; None for a folder) below a folder: a request for each thousand.

    s3fs looks at the parent too where it finds nothing, and reads a whole listing to say that there is one. With
    `most`, one request for so many.
    """
    bucket, key, _ = fs.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "" if recursive else "/"}
    asked |= {"MaxKeys": most} if most else {}
    while True:
        found = fs.call_s3("list_objects_v2", **asked)
        for folder in found.get("CommonPrefixes", []):
            yield folder["Prefix"].removeprefix(prefix).rstrip("/"), None
        for file in found.get("Contents", []):
            yield file["Key"].removeprefix(prefix), int(file["Size"])
        if most or not found.get("IsTruncated"):
            return
        asked["ContinuationToken"] = found["NextContinuationToken"]


def remove_all(fs: PatientS3, paths: Sequence[str]) -> None:
    """Remove objects of one bucket; s3fs would go silently past those that it may not remove."""
    if len(paths) == 1:
        fs.rm_file(paths[0])
        return
    for start in range(0, len(paths), _MOST_REMOVED):
        bucket = fs.split_path(paths[0])[0]
        keys = [{"Key": fs.split_path(path)[1]} for path in paths[start : start + _MOST_REMOVED]]
        answer = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        for error in answer.get("Errors", []):
            raise PermissionError(error["Code"]) if error["Code"] == "AccessDenied" else OSError(error["Code"])


def begun_uploads(fs: PatientS3, path: str) -> Iterator[tuple[str, str]]:
    """(key, id) of uploads below a folder that were begun and never ended; they cost money and are seen nowhere."""
    bucket, key, _ = fs.split_path(path)
    found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key.rstrip('/')}/")
    for entry in found.get("Uploads", []):
        if entry["Key"].startswith(f"{key.rstrip('/')}/"):
            yield entry["Key"], entry["UploadId"]


def abort_uploads(fs: PatientS3, path: str) -> None:
    """End what killed processes began to upload below a folder, where the server and our rights let us."""
    bucket, _, _ = fs.split_path(path)
    try:
        for key, upload_id in begun_uploads(fs, path):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)
    except OSError as error:  # a courtesy: a role that may only read and write objects is enough for a run
        if isinstance(error, PermissionError | FileNotFoundError) or code_of(error) in _NOT_IMPLEMENTED:
            return
        raise
