"""Calls to a lakeFS server: credentials, time-outs, retries, pages, and its errors in our words.

Credentials and the server's address are lakeFS's own: LAKECTL_* variables or ~/.lakectl.yaml. The SDK
has no time-out unless one is given and repeats some failures by itself; here every call has one and
what is repeated is decided in one place.
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import yaml
from lakefs.config import ClientConfig
from lakefs.exceptions import LakeFSException
from lakefs_sdk.client import LakeFSClient
from lakefs_sdk.exceptions import ApiException
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as RequestTimeoutError

from knowledge_base.errors import (
    AlreadyExistsError,
    DirtyBranchError,
    ExpiredError,
    HookFailedError,
    NoChangesError,
    NotFoundError,
    PlumblineError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
    VersionStoreError,
)

PARALLEL = 8
"""Requests under way at once when many objects go up or down."""

HOOK_SECONDS = 300.0
"""How long a call may take that runs hooks: lakeFS answers when the last one is done."""

_PAGE = 1000
_REFUSED = {429, 503}  # the server says that it did nothing
_BROKEN = {500, 502, 504}  # it may have
_CREDENTIALS = "Set LAKECTL_SERVER_ENDPOINT_URL, LAKECTL_CREDENTIALS_ACCESS_KEY_ID and " + (
    "LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY, or run `lakectl config`."
)

Missing = tuple[str, str]
"""(kind, name) of what a 404 means."""


class LostAnswerError(UnavailableError):
    """A request that must not be repeated blindly got no answer: the server may have done it."""


class Client:
    """One server; safe to use from several threads.

    Args:
        connect_seconds: How long to wait for a connection.
        read_seconds: How long to wait for each piece of an answer.
        attempts: How often a call is made before it fails.
        pause_seconds: First pause between attempts; it doubles, up to 8 seconds.

    Raises:
        UnauthorizedError: No credentials are configured.
    """

    def __init__(
        self,
        *,
        connect_seconds: float = 5.0,
        read_seconds: float = 60.0,
        attempts: int = 5,
        pause_seconds: float = 0.25,
    ) -> None:
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._attempts = attempts
        self._pause_seconds = pause_seconds
        configuration = _configuration()
        configuration.retries = False
        configuration.connection_pool_maxsize = 2 * PARALLEL
        self.api = LakeFSClient(configuration, header_name="X-Lakefs-Client", header_value="plumbline")
        self.endpoint: str = configuration.host

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        missing: Missing = ("resource", ""),
        repeat: bool = True,
        seconds: float | None = None,
        **options: Any,
    ) -> Any:
        """Make one SDK call; `repeat` says that doing it twice is doing it once.

        Raises:
            LostAnswerError: Not `repeat`, and no answer came.
            VersionStoreError: What the server said, as the fitting subclass.
        """
        options["_request_timeout"] = (self._connect_seconds, seconds or self._read_seconds)
        for attempt in range(1, self._attempts + 1):
            pause = min(self._pause_seconds * 2 ** (attempt - 1), 8.0) * random.uniform(0.5, 1.0)
            try:
                return function(*arguments, **options)
            except ApiException as error:
                again = error.status in _REFUSED or (repeat and error.status in _BROKEN)
                if attempt == self._attempts or not again:
                    self._refuse(error, missing, repeat)
                pause = max(pause, min(_seconds(error.headers), 30.0))
            except HTTPError as error:
                unsent = isinstance(error, NewConnectionError | ConnectTimeoutError)
                if attempt == self._attempts or not (repeat or unsent):
                    self._fail(error, lost=not (repeat or unsent))
            except ValueError as error:  # not JSON, or not the JSON it should be
                raise UnavailableError(
                    f"What {self.endpoint} answered is not lakeFS's: {str(error)[:200]}",
                    hint="Is LAKECTL_SERVER_ENDPOINT_URL the address of a lakeFS server?",
                ) from error
            time.sleep(pause)
        raise AssertionError("unreachable")

    def once(
        self, function: Callable[..., Any], *arguments: Any, done: Callable[[], Any], **options: Any
    ) -> Any:
        """Make a call that must not be done twice.

        When the connection broke, `done` is asked whether the server did it all the same: what it
        returns is the result, None means that it did not, and the call is made again. A call that
        timed out is never made again: the server may still be at it.

        Raises:
            LostAnswerError: No answer came, and the server has not done it yet.
            VersionStoreError: As `call`.
        """
        for attempt in range(1, self._attempts + 1):
            try:
                return self.call(function, *arguments, repeat=False, **options)
            except LostAnswerError as error:
                time.sleep(self._pause_seconds * attempt)
                found = done()
                if found is not None:
                    return found
                if attempt == self._attempts or isinstance(error.__cause__, RequestTimeoutError):
                    raise
        raise AssertionError("unreachable")

    def pages(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        after: str = "",
        amount: int = _PAGE,
        **options: Any,
    ) -> Iterator[list[Any]]:
        """Results page by page, each asked for when it is needed."""
        while True:
            page = self.call(function, *arguments, after=after, amount=min(amount, _PAGE), **options)
            yield list(page.results)
            if not page.pagination.has_more:
                return
            after = page.pagination.next_offset

    def _refuse(self, error: ApiException, missing: Missing, repeat: bool) -> NoReturn:
        """Raise what the server's answer means; its own message is kept."""
        said, status = _message(error), int(error.status or 0)
        raised: PlumblineError
        if status == 401:
            raised = UnauthorizedError(f"lakeFS refused the credentials: {said}.", hint=_CREDENTIALS)
        elif status == 403:
            raised = UnauthorizedError(
                f"lakeFS forbids this: {said}.", hint="Ask for the permission, or use other credentials."
            )
        elif status == 404:
            raised = NotFoundError(*missing)
        elif status == 409:
            raised = AlreadyExistsError(f"lakeFS: {said}.")
        elif status == 410:
            raised = ExpiredError(
                f"lakeFS has removed it: {said}.", hint="Its garbage collection rules say what is kept."
            )
        elif status == 412:
            raised = HookFailedError(f"A lakeFS hook refused: {said}", hint="Nothing moved.")
        elif status == 400 and "no changes" in said:
            raised = NoChangesError(f"lakeFS: {said}.")
        elif status == 400 and "uncommitted changes" in said:
            raised = DirtyBranchError(f"lakeFS: {said}.")
        elif status == 0 or status in _REFUSED:
            raised = UnavailableError(f"lakeFS at {self.endpoint}: {said}.", hint="Run the command again.")
        elif status >= 500:
            kind = UnavailableError if repeat else LostAnswerError
            raised = kind(f"lakeFS at {self.endpoint} failed ({status}): {said}.", hint="See its log.")
        else:
            raised = VersionStoreError(f"lakeFS refused ({status}): {said}.")
        raise raised from error

    def _fail(self, error: HTTPError, *, lost: bool) -> NoReturn:
        kind = LostAnswerError if lost else UnavailableError
        raise kind(
            f"lakeFS at {self.endpoint} does not answer: {_reason(error)}.",
            hint="Is it running, and is LAKECTL_SERVER_ENDPOINT_URL its address?",
        ) from error


def _configuration() -> ClientConfig:
    try:
        configuration = ClientConfig()
    except LakeFSException as error:
        raise UnauthorizedError("No lakeFS credentials are configured.", hint=_CREDENTIALS) from error
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UnauthorizedError(
            f"lakectl's configuration cannot be read: {error}.", hint=_CREDENTIALS
        ) from error
    if configuration.iam_provider is not None:
        raise UnsupportedError(
            "Signing in to lakeFS by an IAM role is not supported.", hint="Use a key pair or a session token."
        )
    if not configuration.host:
        raise UnauthorizedError("No lakeFS server is configured.", hint=_CREDENTIALS)
    return configuration


def _message(error: ApiException) -> str:
    """What the server says of an error; where it says nothing, the reason of the status."""
    try:
        said = json.loads(error.body or "{}").get("message")
    except (ValueError, AttributeError):
        said = None  # a proxy's page
    return re.sub(r"\s+", " ", str(said or error.reason or f"status {error.status}")).strip(" .")


def _seconds(headers: Any) -> float:
    try:
        return float((headers or {}).get("Retry-After", 0))
    except ValueError:
        return 0.0


def _reason(error: HTTPError) -> str:
    if isinstance(error, RequestTimeoutError):
        return "it took too long"
    return re.sub(r"^.*?(?:object at 0x[0-9a-f]+>: |Pool\([^)]*\): )", "", str(error)).strip(" .")
