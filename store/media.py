"""The kinds of object stores, and what their errors mean.

Requests go through obstore. Of S3 it cannot ask all: where credentials are found, how old an object
is by the store's own clock, a delete under a condition, uploads that nobody ended. These go through
botocore, the client that every S3 program has.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import re
import threading
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

import obstore
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import MemoryStore, S3Store, from_url
from pydantic import Field

from focusdpo.data_schemas.environment import EnvironmentConfig
from focusdpo.data_schemas.errors import UserError

PASSING = {
    *("InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "OperationAborted"),
    *("Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded"),
    *("TooManyRequests", "ConditionalRequestConflict"),
}
CHATTY = ("botocore", "urllib3")
"""Clients that at level DEBUG log the headers of requests, session tokens among them."""


class RemoteConfig(EnvironmentConfig):
    """Retries, time limits and parts. Each field is read from FOCUSDPO_STORAGE_<FIELD>."""

    prefix: ClassVar[str] = "FOCUSDPO_STORAGE_"

    attempts: int = Field(9, ge=1, le=50, description="tries of a request before it counts as lost")
    first_wait: float = Field(0.2, ge=0, description="seconds before the second try; then doubled")
    longest_wait: float = Field(20.0, ge=0, description="seconds between two tries at most")
    connect_timeout: float = Field(10.0, gt=0, description="seconds to wait for a connection")
    read_timeout: float = Field(60.0, gt=0, description="seconds to wait for bytes that must come")
    part_mib: int = Field(
        16,
        ge=5,
        le=5000,
        description="MiB of a part; what is written without a condition and has two parts or more "
        "travels in parts",
    )
    parts_at_once: int = Field(4, ge=1, le=64, description="parts of one file that travel together")


class Medium:
    """A kind of store below an address: one without a clock or a delete under a condition that we
    know how to ask for. A tag is compared, then the object deleted."""

    lock: Any = contextlib.nullcontext()
    """Held for a request."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.url = url.rstrip("/")
        self._config = config
        protocol, _, rest = self.url.partition("://")
        self.bucket, _, prefix = rest.partition("/")
        self._place = f"{protocol}://{self.bucket}"
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def key(self, path: str) -> str:
        """How a file below the address is called in its bucket."""
        return f"{self._prefix}{path}".rstrip("/")

    @functools.cached_property
    def store(self) -> Any:
        try:
            return from_url(self._place, client_options=options_of(self._config), retry_config=ONCE)
        except (BaseError, ValueError) as error:
            raise UserError(f"{self.url}: {_first_line(error)}") from None

    @property
    def patient_store(self) -> Any:
        """One that repeats the requests of an upload in parts by itself."""
        return self.store

    def age(self, key: str) -> float | None:
        """Seconds since an object was written, by the store's own clock; FileNotFoundError when it
        is absent."""
        obstore.head(self.store, key)
        return None

    def delete_if(self, key: str, tag: str) -> None:
        """Remove that state of an object."""
        try:
            if obstore.head(self.store, key)["e_tag"] == tag:
                obstore.delete(self.store, key)
        except FileNotFoundError:
            return

    def sweep(self, older_than: float) -> int:
        """Give up uploads that began more than so many seconds ago; how many. These stores forget
        them by themselves."""
        return 0


class Memory(Medium):
    """For tests: gone with the process."""

    lock = threading.RLock()

    @property
    def store(self) -> Any:  # type: ignore[override]
        return _memory(self.bucket)

    def age(self, key: str) -> float:
        written: datetime.datetime = obstore.head(self.store, key)["last_modified"]
        return (datetime.datetime.now(datetime.UTC) - written).total_seconds()


@functools.cache
def _memory(bucket: str) -> MemoryStore:
    return MemoryStore()


class S3(Medium):
    """Any store that speaks S3. Credentials come from where every S3 program finds them:
    environment, ~/.aws, the machine's role. They are in no address, no log and no error."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        super().__init__(url, config)
        self._lock = threading.Lock()
        self._made: tuple[Any, Any, Any] | None = None

    @property
    def store(self) -> Any:  # type: ignore[override]
        return self._connected()[0]

    @property
    def patient_store(self) -> Any:
        return self._connected()[1]

    def age(self, key: str) -> float:
        try:
            answer = self._client.head_object(Bucket=self.bucket, Key=key)
        except self._client.exceptions.ClientError as error:
            if status_of(error) == 404:
                raise FileNotFoundError(key) from None
            raise
        return float(max(0.0, (_now(answer) - answer["LastModified"]).total_seconds()))

    def delete_if(self, key: str, tag: str) -> None:
        """A store without conditional deletes is asked for the tag first."""
        where = {"Bucket": self.bucket, "Key": key}
        try:
            if obstore.head(self.store, key)["e_tag"] == tag:
                self._client.delete_object(**where, IfMatch=tag)
        except FileNotFoundError:
            return
        except self._client.exceptions.ClientError as error:
            if _code(error) == "NotImplemented":
                self._client.delete_object(**where)
            elif _code(error) != "PreconditionFailed" and status_of(error) not in {404, 412}:
                raise

    def sweep(self, older_than: float) -> int:
        answer = self._client.list_multipart_uploads(Bucket=self.bucket, Prefix=self._prefix)
        old = [
            upload
            for upload in answer.get("Uploads", ())
            if (_now(answer) - upload["Initiated"]).total_seconds() > older_than
        ]
        for upload in old:
            self._client.abort_multipart_upload(
                Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        return len(old)

    @property
    def _client(self) -> Any:
        return self._connected()[2]

    def _connected(self) -> tuple[Any, Any, Any]:
        """A store, a patient one, and botocore's client."""
        with self._lock:
            if self._made is None:
                client, credentials = _s3_client(self._config)
                store, patient = (
                    S3Store(
                        self.bucket,
                        endpoint=client.meta.endpoint_url,
                        region=client.meta.region_name,
                        client_options=options_of(self._config),
                        retry_config=retries,
                        credential_provider=_Provider(credentials),
                    )
                    for retries in (ONCE, _patience(self._config))
                )
                self._made = (store, patient, client)
            return self._made


_process: int | None = None


def refuse_after_fork() -> None:
    """RuntimeError in a process that was forked after obstore was used: it would wait for ever for
    threads that are its parent's."""
    global _process
    if _process not in (None, os.getpid()):
        raise RuntimeError(
            "a process cannot use a remote store when its parent had used one before the fork; "
            "start it anew (multiprocessing: 'spawn')"
        )
    _process = os.getpid()


class _Provider:
    """Credentials for obstore, asked for again before they run out: botocore renews those of roles
    ten minutes before their end."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> Any:
        now = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=9),
        }


def _s3_client(config: RemoteConfig) -> tuple[Any, Any]:
    """botocore's client, and the credentials that it found."""
    try:
        import botocore.session
        from botocore.config import Config
    except ImportError as error:
        raise UserError("s3:// needs botocore: pip install 'focusdpo[s3]'") from error
    hush_clients()
    session = botocore.session.get_session()
    session.register_component("data_loader", _models(session.get_config_variable("data_path")))
    limits = Config(
        connect_timeout=config.connect_timeout,
        read_timeout=config.read_timeout,
        # Tries are counted here and nowhere below.
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    region = session.get_config_variable("region") or os.environ.get("AWS_REGION") or "us-east-1"
    client = session.create_client("s3", region_name=region, config=limits)
    credentials = session.get_credentials()
    if credentials is None:
        raise UserError(
            "s3://: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    return client, credentials


@functools.cache
def _models(data_path: str | None) -> Any:
    """botocore's descriptions of services. Each client has a session of its own, which looks for
    credentials anew; reading the descriptions takes longer than all else, and they stay as they
    are."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


def hush_clients() -> None:
    """Keep what clients of remote stores log free of credentials, whatever the level."""
    for name in CHATTY:
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.WARNING, logger.level))


ONCE: Any = {"max_retries": 0}
"""Tries are counted by `persistently` and nowhere below."""


def _patience(config: RemoteConfig) -> Any:
    waits = {"init_backoff": config.first_wait, "max_backoff": config.longest_wait}
    backoff = {name: datetime.timedelta(seconds=wait) for name, wait in waits.items()}
    limit = config.attempts * (config.longest_wait + config.read_timeout)
    return {
        "max_retries": config.attempts - 1,
        "backoff": backoff,
        "retry_timeout": datetime.timedelta(seconds=limit),
    }


def options_of(config: RemoteConfig) -> Any:
    """How obstore talks to a server."""
    options: dict[str, Any] = {
        "connect_timeout": datetime.timedelta(seconds=config.connect_timeout),
        "read_timeout": datetime.timedelta(seconds=config.read_timeout),
        "timeout": datetime.timedelta(days=1),  # of a whole file, however large
        "allow_http": True,
    }
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        with open(bundle, "rb") as file:  # noqa: PTH123
            options["root_certificate"] = file.read()
    return options


def is_passing(error: BaseException) -> bool:
    """Whether the same request may well succeed later."""
    status, code = status_of(error), _code(error)
    if status or code:
        return code in PASSING or status in {408, 429} or status >= 500
    if isinstance(error, BaseError):
        return "HTTP error" in str(error)
    names = {kind.__name__ for kind in type(error).__mro__}  # botocore's, if it is there
    lost = {"HTTPClientError", "IncompleteReadError", "ResponseParserError"}
    return bool(names & lost) or isinstance(error, (ConnectionError, TimeoutError))


def is_forbidden(error: BaseException) -> bool:
    """Whether the store knows who asks, or does not, and will not do it for him."""
    forbidden = (PermissionDeniedError, UnauthenticatedError, PermissionError)
    return isinstance(error, forbidden) or status_of(error) in {401, 403}


def refusal(error: BaseException, root: str) -> str | None:
    """What is wrong and what to do, when only the user can mend it."""
    code, status = _code(error), status_of(error)
    if code == "NoSuchBucket":
        bucket = root.partition("://")[2].partition("/")[0]
        return f"there is no bucket '{bucket}'; make it first, or correct its name"
    if code == "RequestTimeTooSkewed":
        return "this machine's clock is wrong; set it"
    if status == 301 or code == "PermanentRedirect":
        return "the bucket lies in another region; set AWS_DEFAULT_REGION"
    if is_forbidden(error):
        return (
            f"the store refuses ({in_words(error)}); check the credentials in the environment and "
            "what they may do here"
        )
    return None


def in_words(error: BaseException) -> str:
    """An error's code or kind. The text of an answer is the store's, and may repeat what was
    sent."""
    code, status = _code(error), status_of(error)
    if code or status:
        return f"{code} (status {status})" if code else f"status {status}"
    lost = isinstance(error, BaseError) and "HTTP error" in str(error)
    return "a lost connection" if lost else type(error).__name__


def _code(error: BaseException) -> str:
    match = re.search(r"<Code>(\w+)</Code>", str(error)) if isinstance(error, BASE) else None
    return match[1] if match else str(_answer(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    match = re.search(r"status code: (\d{3})", str(error)) if isinstance(error, BASE) else None
    status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(match[1] if match else status)


BASE = (BaseError, OSError)
"""What obstore raises: an absent object is Python's FileNotFoundError."""


def _answer(error: BaseException) -> Any:
    """What the store answered to botocore, when it did."""
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _now(answer: Any) -> datetime.datetime:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
