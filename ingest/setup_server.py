"""An InfluxDB as its operator asks it: influxdb-client's calls, with errors by type.

| answer | raised |
|---|---|
| refused, reset, no such host, TLS, nothing in time; 408, 429, 499, 5xx | `StoreUnavailable` |
| 401, 403 | `StoreRefused`, which names how to give an operator's token |
| any other 4xx | `StoreRefused` with the server's words |

No error has a token in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException
from urllib3.exceptions import HTTPError

from marketdata.errors import StoreRefused, StoreUnavailable

TIMEOUT_MS = 10_000
CURE = "give --admin-token-file, or set INFLUXDB_ADMIN_TOKEN"

_TRANSIENT = (0, 408, 429, 499)
_NOT_ALLOWED = (401, 403)
_ABSENT = 404
_MESSAGE_CHARS = 300

P = ParamSpec("P")
T = TypeVar("T")


class Server:
    """One server; nothing is sent before it is asked for something.

    `client` acts without a token until `use` gives it one.
    """

    def __init__(self, url: str, org: str) -> None:
        self._url = url
        self._org = org
        self._token = ""
        self.client = self._connect()

    @property
    def address(self) -> str:
        """Host and port."""
        return urlsplit(self._url).netloc.rpartition("@")[2]

    def use(self, token: str) -> None:
        """Act with this token from now on."""
        self.client.close()
        self._token = token
        self.client = self._connect()

    def close(self) -> None:
        """Close its connections."""
        self.client.close()

    def ask(self, what: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the server answers to `call`; `what` is what it is asked to do, for errors."""
        try:
            return call(*args, **kwargs)
        except (ApiException, HTTPError) as error:
            # From None: the cause can carry the request's headers and the token.
            raise self._error(what, error) from None

    def find(self, what: str, call: Callable[..., T], **arguments: Any) -> T | None:
        """As `ask`; None where the server says that there is no such thing."""
        try:
            return call(**arguments)
        except (ApiException, HTTPError) as error:
            if isinstance(error, ApiException) and error.status == _ABSENT:
                return None
            raise self._error(what, error) from None

    def not_allowed(self, what: str) -> StoreRefused:
        """The error of a token that may not do this."""
        return StoreRefused(
            f"InfluxDB at {self.address} doesn't let this token {what}: an operator's token is"
            f" needed; {CURE}"
        )

    def _connect(self) -> InfluxDBClient:
        return InfluxDBClient(self._url, self._token, org=self._org, timeout=TIMEOUT_MS)

    def _error(self, what: str, error: ApiException | HTTPError) -> StoreUnavailable | StoreRefused:
        where = f"InfluxDB at {self.address}"
        if isinstance(error, HTTPError):
            return StoreUnavailable(
                f"{where} doesn't answer: {type(error).__name__}; start it, or correct store.url"
            )
        if error.status in _NOT_ALLOWED:
            return self.not_allowed(what)
        said = f"{error.status} {_message(error)}"
        if self._token:
            said = said.replace(self._token, "***")
        if error.status >= 500 or error.status in _TRANSIENT:
            return StoreUnavailable(f"{where} can't {what} now: {said}; run the setup again")
        return StoreRefused(f"{where} refuses to {what}: {said}")


def _message(error: ApiException) -> str:
    text = bytes(error.body or b"").decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    message = answer.get("message") if isinstance(answer, dict) else text
    return str(message or error.reason)[:_MESSAGE_CHARS]
