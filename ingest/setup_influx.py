"""The InfluxDB side of `ingest setup`: organization, buckets, tasks and tokens.

| what | wanted | where it differs |
|---|---|---|
| a server that nobody has set up | an operator: user `admin`, its token | – |
| the bucket of candles | kept for ever, shards of 30 days or more | changed |
| the bucket of ticks | kept for `store.ticks.retention`, shards that fit (`shard_s`) | changed |
| two tasks, where ticks expire | `ingest.downsampling` | changed |
| a token for the service, one for readers | read and write, read; these buckets only | `missing` |

Long shards: memory and files of the server go down with their number. Retention and shards are
always sent together, since the server refuses a retention below the shards that it has.

A token that is there is never replaced unasked, because whoever uses it would be locked out; the
server doesn't tell its secret again. What InfluxDB refuses is raised with its words; no error has
a secret in it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.domain.authorization import Authorization
from influxdb_client.domain.bucket_retention_rules import BucketRetentionRules
from influxdb_client.domain.onboarding_request import OnboardingRequest
from influxdb_client.domain.permission import Permission
from influxdb_client.domain.permission_resource import PermissionResource
from influxdb_client.domain.task_create_request import TaskCreateRequest
from influxdb_client.domain.task_update_request import TaskUpdateRequest
from influxdb_client.rest import ApiException
from influxdb_client.service.setup_service import SetupService
from urllib3.exceptions import HTTPError

from ingest.downsampling import DownsamplingTask, downsampling_tasks
from ingest.setup import TOKENS, Keeper, Step
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.settings import InfluxStore
from marketdata.units import format_duration

TIMEOUT_MS = 10_000
PASSWORD_VARIABLE = "INFLUXDB_ADMIN_PASSWORD"  # noqa: S105 (a name)
USER = "admin"

_HOUR_S, _DAY_S = 3_600, 86_400
_LONG_S = 30 * _DAY_S
_TRANSIENT = (0, 408, 429, 499)
_NOT_ALLOWED = (401, 403)
_ABSENT = 404

_ACTIONS = {"service": ("read", "write"), "readers": ("read",)}
"""What each token may do; the service reads what it has stored as well."""

P = ParamSpec("P")
T = TypeVar("T")


def shard_s(retention_s: int, present_s: int | None = None) -> int:
    """The shard duration for a retention, in seconds; a retention of 0 is for ever.

    Longer shards than wanted may be somebody's choice: those of `present_s` stay.

    >>> shard_s(0), shard_s(90 * 86_400), shard_s(30 * 86_400), shard_s(6 * 3_600)
    (2592000, 2592000, 86400, 3600)
    >>> shard_s(0, present_s=90 * 86_400), shard_s(0, present_s=7 * 86_400)
    (7776000, 2592000)
    """
    if retention_s and retention_s <= _LONG_S:
        return _DAY_S if retention_s > _DAY_S else _HOUR_S
    if (
        present_s is not None
        and present_s >= _LONG_S
        and (not retention_s or retention_s > present_s)
    ):
        return present_s
    return _LONG_S


class InfluxSetup:
    """Sets one InfluxDB up; use it as a context manager.

    Parameters
    ----------
    admin
        The operator's token: how to get in, or, on a server that nobody has set up, what it will
        be. None: one is made there, and nothing can be done elsewhere.
    fallback
        What is tried on a server that is set up where `admin` is None.
    keeper
        Where new secrets go.
    new_tokens
        The tokens to be replaced where they are there: names of `ingest.setup.TOKENS`.
    dry_run
        Only look.
    """

    def __init__(
        self,
        store: InfluxStore,
        *,
        admin: str | None,
        fallback: str | None,
        keeper: Keeper,
        new_tokens: Collection[str],
        dry_run: bool,
    ) -> None:
        self._store = store
        self._admin = admin
        self._fallback = fallback
        self._keeper = keeper
        self._new_tokens = new_tokens
        self._dry_run = dry_run
        self._onboarded = False
        self._org_id: str | None = None
        self._bucket_ids: dict[str, str | None] = {}
        self._client = self._connect(None)

    def __enter__(self) -> InfluxSetup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def run(self) -> Iterator[Step]:
        """Each step when it is done.

        Raises
        ------
        StoreUnavailable
            No server answers, or it can't now.
        StoreRefused
            The operator's token is wrong or may not do this, or this is no InfluxDB 2.x.
        OSError
            A secret can't be kept; what it would have opened isn't made.
        """
        ticks = self._store.ticks
        if self._is_virgin():
            yield self._onboard()
            if self._dry_run:
                yield from self._all_new()
                return
        self._use(self._admin or self._fallback)
        yield self._organization()
        yield self._bucket(self._store.bucket, None)
        if ticks.bucket is not None:
            yield self._bucket(ticks.bucket, ticks.retention_ms)
        for task in self._tasks():
            yield self._task(task)
        for name in TOKENS:
            yield self._token(name)

    def _tasks(self) -> tuple[DownsamplingTask, ...]:
        """None where ticks don't expire: then they are what dashboards read."""
        ticks = self._store.ticks
        if ticks.bucket is None or ticks.retention_ms is None:
            return ()
        return downsampling_tasks(self._store.bucket, ticks.bucket, ticks.retention_ms)

    def _is_virgin(self) -> bool:
        answer = self._ask(
            "find out whether it is set up", SetupService(self._client.api_client).get_setup
        )
        allowed = getattr(answer, "allowed", None)
        if not isinstance(allowed, bool):
            raise StoreRefused(
                f"what answers at {self._address} is no InfluxDB 2.x; check store.url"
            )
        return allowed

    def _onboard(self) -> Step:
        what = f"operator of {self._address}"
        if self._dry_run:
            return Step(what, "created", f"user {USER}")
        with self._keeper.place("admin") as place:
            token = self._admin or secrets.token_urlsafe(32)
            request = OnboardingRequest(
                username=USER,
                password=os.environ.get(PASSWORD_VARIABLE),
                org=self._store.org,
                bucket=self._store.bucket,
                token=token,
            )
            self._ask(f"create {what}", SetupService(self._client.api_client).post_setup, request)
            where = "its token is the one given" if self._admin else place.put(token)
        self._admin, self._onboarded = token, True
        return Step(what, "created", f"user {USER}, {where}")

    def _all_new(self) -> Iterator[Step]:
        """What a server that nobody has set up would get."""
        yield Step(f"organization {self._store.org}", "created")
        for name in (self._store.bucket, self._store.ticks.bucket):
            if name is not None:
                yield Step(f"bucket {name}", "created")
        for task in self._tasks():
            yield Step(f"task {task.name!r}", "created")
        for name in TOKENS:
            yield Step(f"token {self._described(name)!r}", "created")

    def _organization(self) -> Step:
        name = self._store.org
        what = f"organization {name}"
        api = self._client.organizations_api()
        found = self._find(f"look for {what}", api.find_organizations, org=name)
        if found == []:
            # An absent one is a 404: this token isn't allowed to see it.
            raise self._not_allowed(f"look for {what}")
        if found is not None:
            self._org_id = found[0].id
            return Step(what, "created" if self._onboarded else "there")
        if not self._dry_run:
            self._org_id = self._ask(f"create {what}", api.create_organization, name=name).id
        return Step(what, "created")

    def _bucket(self, name: str, retention_ms: int | None) -> Step:
        what = f"bucket {name}"
        api = self._client.buckets_api()
        retention_s = 0 if retention_ms is None else -(-retention_ms // 1000)
        found = None
        if self._org_id is not None:
            found = self._find(f"look for {what}", api.find_buckets, name=name, org_id=self._org_id)
        if found is None or not found.buckets:
            wanted = retention_s, shard_s(retention_s)
            self._bucket_ids[name] = None
            if not self._dry_run:
                made = self._ask(
                    f"create {what}",
                    api.create_bucket,
                    bucket_name=name,
                    retention_rules=_rule_of(*wanted),
                    org=self._org_id,
                )
                self._bucket_ids[name] = made.id
            return Step(what, "created", _kept(*wanted))
        bucket = found.buckets[0]
        self._bucket_ids[name] = bucket.id
        present = _present(bucket.retention_rules)
        wanted = retention_s, shard_s(retention_s, present[1])
        if present == wanted:
            return Step(what, "there", _kept(*wanted))
        if not self._dry_run:
            bucket.retention_rules = [_rule_of(*wanted)]
            self._ask(f"change {what}", api.update_bucket, bucket)
        if self._onboarded and name == self._store.bucket:
            return Step(
                what, "created", _kept(*wanted)
            )  # the server made it, with rules of its own
        return Step(what, "changed", f"was {_kept(*present)}; is {_kept(*wanted)}")

    def _task(self, task: DownsamplingTask) -> Step:
        what = f"task {task.name!r}"
        api = self._client.tasks_api()
        # Names aren't unique on the server; with two of one name the first counts.
        found = (
            self._ask(f"look for {what}", api.find_tasks, name=task.name, org_id=self._org_id)
            if self._org_id is not None
            else []
        )
        if not found:
            if not self._dry_run:
                request = TaskCreateRequest(org_id=self._org_id, flux=task.flux, status="active")
                self._ask(f"create {what}", api.create_task, task_create_request=request)
            return Step(what, "created")
        present = found[0]
        differs = [
            text
            for text, same in (
                ("its text was another", present.flux == task.flux),
                (f"it was {present.status}", present.status == "active"),
            )
            if not same
        ]
        if not differs:
            return Step(what, "there")
        if not self._dry_run:
            update = TaskUpdateRequest(flux=task.flux, status="active")
            self._ask(f"change {what}", api.update_task_request, present.id, update)
        return Step(what, "changed", "; ".join(differs))

    def _token(self, name: str) -> Step:
        what = f"token {self._described(name)!r}"
        api = self._client.authorizations_api()
        of_org = (
            self._ask(f"look for {what}", api.find_authorizations, org_id=self._org_id)
            if self._org_id is not None
            else []
        )
        found = [token for token in of_org if token.description == self._described(name)]
        if found and name not in self._new_tokens:
            return self._judge_token(name, what, found[0])
        if self._dry_run:
            return Step(what, "changed" if found else "created", "a new secret")
        with self._keeper.place(name) as place:
            made = self._ask(
                f"create {what}", api.create_authorization, authorization=self._wanted(name)
            )
            try:
                where = place.put(made.token)
            except BaseException:
                self._ask(f"take {what} back", api.delete_authorization, made.id)
                raise
        for old in found:
            self._ask(f"delete the old {what}", api.delete_authorization, old.id)
        replaced = "a new secret, the old one is void; " if found else ""
        return Step(what, "changed" if found else "created", replaced + where)

    def _judge_token(self, name: str, what: str, token: Authorization) -> Step:
        """Of a token that is there: is it what is wanted, and is its secret where it should be."""
        cure = f"--new-token {name} makes another"
        if token.status != "active":
            return Step(what, "missing", f"somebody has set it {token.status}; {cure}")
        if self._allowed(token) != self._allowed(self._wanted(name)):
            return Step(what, "missing", f"it is not for these buckets; {cure}")
        if self._keeper.keeps and not self._works(self._keeper.kept(name)):
            return Step(what, "missing", f"its secret isn't in the folder; {cure}")
        return Step(what, "there")

    def _works(self, secret: str | None) -> bool:
        """Whether a secret opens the bucket of candles."""
        if secret is None:
            return False
        with self._connect(secret) as client:
            find = client.buckets_api().find_buckets
            try:
                found = self._find("try a token", find, name=self._store.bucket)
            except StoreRefused:
                return False
        return found is not None and bool(found.buckets)

    def _wanted(self, name: str) -> Authorization:
        permissions = [
            Permission(
                action=action,
                resource=PermissionResource(type="buckets", id=bucket_id, org_id=self._org_id),
            )
            for bucket_id in self._bucket_ids.values()
            for action in _ACTIONS[name]
        ]
        description = self._described(name)
        return Authorization(org_id=self._org_id, permissions=permissions, description=description)

    def _described(self, name: str) -> str:
        return f"{self._store.bucket}: {name}"

    @staticmethod
    def _allowed(token: Authorization) -> set[tuple[str, str]]:
        return {(p.action, p.resource.id) for p in token.permissions}

    def _use(self, token: str | None) -> None:
        if token is None:
            raise StoreRefused(
                f"InfluxDB at {self._address} is set up already, and there is no operator's token:"
                " give --admin-token-file, or set INFLUXDB_ADMIN_TOKEN"
            )
        self._client.close()
        self._client = self._connect(token)

    def _connect(self, token: str | None) -> InfluxDBClient:
        return InfluxDBClient(self._store.url, token or "", org=self._store.org, timeout=TIMEOUT_MS)

    @property
    def _address(self) -> str:
        return urlsplit(self._store.url).netloc.rpartition("@")[2]

    def _find(self, what: str, call: Callable[..., T], **arguments: Any) -> T | None:
        """As `_ask`; None where the server says that there is no such thing."""
        try:
            return call(**arguments)
        except (ApiException, HTTPError) as error:
            if isinstance(error, ApiException) and error.status == _ABSENT:
                return None
            raise self._error(what, error) from None

    def _ask(self, what: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the server answers; errors by type, without the request that may hold a secret."""
        try:
            return call(*args, **kwargs)
        except (ApiException, HTTPError) as error:
            raise self._error(what, error) from None

    def _error(self, what: str, error: ApiException | HTTPError) -> StoreUnavailable | StoreRefused:
        where = f"InfluxDB at {self._address}"
        if isinstance(error, HTTPError):
            return StoreUnavailable(
                f"{where} doesn't answer: {type(error).__name__}; start it, or correct store.url"
            )
        if error.status in _NOT_ALLOWED:
            return self._not_allowed(what)
        said = f"{error.status} {_message(error)}".replace(self._admin or "\0", "***")
        if error.status >= 500 or error.status in _TRANSIENT:
            return StoreUnavailable(f"{where} can't {what} now: {said}; run the setup again")
        return StoreRefused(f"{where} refuses to {what}: {said}")

    def _not_allowed(self, what: str) -> StoreRefused:
        return StoreRefused(
            f"InfluxDB at {self._address} doesn't let this token {what}: an operator's token is"
            " needed (--admin-token-file, or INFLUXDB_ADMIN_TOKEN)"
        )


def _present(rules: list[Any]) -> tuple[int, int | None]:
    """Retention (0: for ever) and shard duration in seconds, as the server states them."""
    if not rules:
        return 0, None
    return rules[0].every_seconds or 0, rules[0].shard_group_duration_seconds


def _rule_of(retention_s: int, of_shard_s: int) -> BucketRetentionRules:
    return BucketRetentionRules(
        type="expire", every_seconds=retention_s, shard_group_duration_seconds=of_shard_s
    )


def _kept(retention_s: int, of_shard_s: int | None) -> str:
    kept = f"kept {format_duration(retention_s * 1000)}" if retention_s else "kept for ever"
    shards = "" if of_shard_s is None else f", shards of {format_duration(of_shard_s * 1000)}"
    return kept + shards


def _message(error: ApiException) -> str:
    text = bytes(error.body or b"").decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    message = answer.get("message") if isinstance(answer, dict) else text
    return str(message or error.reason)[:300]
