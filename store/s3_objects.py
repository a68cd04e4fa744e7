"""Amazon's S3 protocol through s3fs: ranged reads, conditional writes, uploads in parts.

Credentials come from where every S3 program finds them: environment, ~/.aws, the machine's role, or
fsspec's configuration. They are in no address, no log and no error.
"""

from __future__ import annotations

import datetime
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.addresses import hush_clients
from focusdpo.store.remote import ABSENT, Found, RemoteConfig, persistently

PASSING = {
    *("InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "OperationAborted"),
    *("Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded"),
    *("TooManyRequests", "ConditionalRequestConflict"),
}
NOT_HELD = {"PreconditionFailed", "412"}
MISSING = {"NoSuchKey", "404", "NotFound"}


class S3Objects:
    """The objects below `bucket/prefix`."""

    def __init__(self, bucket: str, prefix: str, config: RemoteConfig) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._config = config
        self._lock = threading.Lock()
        self._made: tuple[int, Any] | None = None

    def address(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}".rstrip("/")

    def look(self, key: str) -> Found:
        answer = self._call("head_object", Key=self._prefix + key)
        return Found(answer["ContentLength"], answer["ETag"], _age(answer))

    def get(self, key: str, offset: int, size: int) -> tuple[bytes, str]:
        if size == 0:
            return b"", self.look(key).tag
        where: dict[str, str] = {}
        if offset or size > 0:
            last = offset + size - 1 if size > 0 else ""
            where["Range"] = f"bytes={offset}-{last}"
        try:
            answer, data = self._fetched(Key=self._prefix + key, **where)
        except OSError as error:
            if _status(error) == 416:  # the object ends before the range
                return b"", self.look(key).tag
            raise
        if len(data) != answer["ContentLength"]:
            raise ConnectionError(f"{len(data)} of {answer['ContentLength']} bytes came")
        return data, str(answer["ETag"])

    def put(self, key: str, source: BinaryIO, size: int, condition: str | None) -> str | None:
        held: dict[str, str] = {}
        if condition == ABSENT:
            held["IfNoneMatch"] = "*"
        elif condition is not None:
            held["IfMatch"] = condition
        # Not every store that decides atomically between conditional PUTs does so between
        # completed uploads in parts (SeaweedFS 4.48 does not), so a condition takes one PUT.
        if condition is None and size >= 2 * self._config.part_mib * 2**20:
            return str(self._put_parts(self._prefix + key, source, size)["ETag"])
        try:
            answer = self._call("put_object", Key=self._prefix + key, Body=source.read(), **held)
        except OSError as error:
            if _code(error) in NOT_HELD or (condition not in (None, ABSENT) and _missing(error)):
                return None
            raise
        return str(answer["ETag"])

    def below(self, key: str) -> dict[str, int]:
        start = f"{self._prefix}{key}/" if key else self._prefix
        return {
            one["Key"].removeprefix(start): one["Size"]
            for page in self._pages(start)
            for one in page.get("Contents", ())
        }

    def names(self, key: str) -> list[str]:
        start = f"{self._prefix}{key}/" if key else self._prefix
        found = []
        for page in self._pages(start, Delimiter="/"):
            found += [one["Key"] for one in page.get("Contents", ())]
            found += [one["Prefix"] for one in page.get("CommonPrefixes", ())]
        return sorted(one.removeprefix(start).rstrip("/") for one in found if one != start)

    def delete(self, key: str, tag: str | None) -> None:
        """A store without conditional deletes is asked for the tag first."""
        full = self._prefix + key
        if tag is None:
            self._call("delete_object", Key=full)
            return
        try:
            if self.look(key).tag == tag:
                self._call("delete_object", Key=full, IfMatch=tag)
        except OSError as error:
            if _code(error) == "NotImplemented":
                self._call("delete_object", Key=full)
            elif _code(error) not in NOT_HELD and not _missing(error):
                raise

    def sweep(self, older_than: float) -> int:
        answer = self._call("list_multipart_uploads", Prefix=self._prefix)
        now = _now(answer)
        old = [
            one
            for one in answer.get("Uploads", ())
            if (now - one["Initiated"]).total_seconds() > older_than
        ]
        for one in old:
            self._call("abort_multipart_upload", Key=one["Key"], UploadId=one["UploadId"])
        return len(old)

    def passing(self, error: BaseException) -> bool:
        from aiohttp import ClientError as HttpError
        from botocore.exceptions import ConnectionError as NoConnection
        from botocore.exceptions import HTTPClientError, IncompleteReadError
        from botocore.parsers import ResponseParserError

        if _code(error) in PASSING or _status(error) in {408, 429} or _status(error) >= 500:
            return True
        kinds = (HttpError, NoConnection, HTTPClientError, IncompleteReadError, ResponseParserError)
        return isinstance(error, (*kinds, ConnectionError, TimeoutError))

    def refusal(self, error: BaseException) -> str | None:
        from botocore.exceptions import (
            CredentialRetrievalError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        code = _code(error)
        if isinstance(
            error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
        ):
            return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        if code == "NoSuchBucket":
            return f"there is no bucket '{self._bucket}'; make it first, or correct its name"
        if code == "RequestTimeTooSkewed":
            return "this machine's clock is wrong; set it"
        if isinstance(error, PermissionError) or _status(error) in {401, 403}:
            return (
                f"the store refuses ({self.told(error)}); check the credentials in the "
                "environment and what they may do here"
            )
        return None

    def told(self, error: BaseException) -> str:
        """Its code or kind. The text of an answer is the store's, and may repeat what was sent."""
        code, status = _code(error), _status(error)
        return f"{code} (status {status})" if code else type(error).__name__

    def _call(self, method: str, **given: Any) -> Any:
        return self._fs().call_s3(method, Bucket=self._bucket, **given)

    def _fetched(self, **given: Any) -> tuple[Any, bytes]:
        from fsspec.asyn import sync

        fs = self._fs()

        async def fetch() -> tuple[Any, bytes]:
            answer = await fs._call_s3("get_object", Bucket=self._bucket, **given)
            async with answer["Body"] as body:
                return answer, await body.read()

        return sync(fs.loop, fetch)

    def _pages(self, start: str, **given: Any) -> Iterator[Any]:
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=start, **given, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _put_parts(self, key: str, source: BinaryIO, size: int) -> Any:
        """Each part is repeated by itself; the object appears when the upload is completed."""
        upload = self._call("create_multipart_upload", Key=key)["UploadId"]
        part = self._config.part_mib * 2**20

        def send(number: int, data: bytes) -> dict[str, Any]:
            answer = persistently(
                lambda: self._call(
                    "upload_part", Key=key, UploadId=upload, PartNumber=number, Body=data
                ),
                self.passing, self.told, f"s3://{self._bucket}/{key} part {number}", self._config,
            )  # fmt: skip
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            parts: list[dict[str, Any]] = []
            numbers = range(1, -(-size // part) + 1)
            step = self._config.parts_at_once
            with ThreadPoolExecutor(step) as pool:
                for at in range(0, len(numbers), step):  # so many parts are in memory at once
                    some = [(number, source.read(part)) for number in numbers[at : at + step]]
                    parts += pool.map(lambda one: send(*one), some)
            return self._complete(key, upload, parts)
        except BaseException:
            self._abort(key, upload)
            raise

    def _complete(self, key: str, upload: str, parts: list[Any]) -> Any:
        try:
            return self._call(
                "complete_multipart_upload",
                Key=key, UploadId=upload, MultipartUpload={"Parts": parts},
            )  # fmt: skip
        except FileNotFoundError as error:
            # Gone: swept up, or ended by a try whose answer was lost. The next try tells.
            raise ConnectionError("the upload is gone") from error

    def _abort(self, key: str, upload: str) -> None:
        """What cannot be given up now is swept up in a day."""
        try:
            self._call("abort_multipart_upload", Key=key, UploadId=upload)
        except Exception as error:
            logging.getLogger(__name__).info("%s: %s", self.address(""), self.told(error))

    def _fs(self) -> Any:
        """A connection of this process: one made before a fork does not work after it."""
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), _connected(self._config))
            return self._made[1]


def _connected(config: RemoteConfig) -> Any:
    import fsspec

    try:
        import s3fs
    except ImportError as error:
        raise UserError("s3:// needs s3fs: pip install 'focusdpo[s3]'") from error
    hush_clients()
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    limits = {
        "connect_timeout": config.connect_timeout,
        "read_timeout": config.read_timeout,
        # Tries are counted here and nowhere below.
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    fs = s3fs.S3FileSystem(
        config_kwargs=limits | own, use_listings_cache=False, skip_instance_cache=True
    )
    fs.retries = 1
    fs.connect()
    return fs


def _answer(error: BaseException) -> Any:
    """What the store answered, when it did."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _code(error: BaseException) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _missing(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or _code(error) in MISSING


def _now(answer: Any) -> datetime.datetime:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


def _age(answer: Any) -> float:
    return float(max(0.0, (_now(answer) - answer["LastModified"]).total_seconds()))
