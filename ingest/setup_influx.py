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

import math
import os
import secrets
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Any

from influxdb_client.domain.authorization import Authorization
from influxdb_client.domain.bucket_retention_rules import BucketRetentionRules
from influxdb_client.domain.onboarding_request import OnboardingRequest
from influxdb_client.domain.permission import Permission
from influxdb_client.domain.permission_resource import PermissionResource
from influxdb_client.domain.task_create_request import TaskCreateRequest
from influxdb_client.domain.task_update_request import TaskUpdateRequest
from influxdb_client.service.setup_service import SetupService

from ingest.downsampling import DownsamplingTask, downsampling_tasks
from ingest.setup import TOKENS, Keeper, Step
from ingest.setup_server import CURE, Server
from marketdata.errors import StoreRefused
from marketdata.settings import InfluxStore
from marketdata.units import format_duration

PASSWORD_VARIABLE = "INFLUXDB_ADMIN_PASSWORD"  # noqa: S105 (a name)
USER = "admin"

_HOUR_S, _DAY_S = 3_600, 86_400
_LONG_S = 30 * _DAY_S

_ACTIONS = {"service": ("read", "write"), "readers": ("read",)}
"""What each token may do; the service reads what it has stored as well."""


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
    if present_s is not None and _LONG_S <= present_s < (retention_s or math.inf):
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
        self._server = Server(store.url, store.org)

    def __enter__(self) -> InfluxSetup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()

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
                yield Step(f"organization {self._store.org}", "created")
                yield from self._all_new()
                return
        token = self._admin or self._fallback
        if token is None:
            raise StoreRefused(
                f"InfluxDB at {self._server.address} is set up already, and there is no operator's"
                f" token: {CURE}"
            )
        self._server.use(token)
        yield self._organization()
        if self._org_id is None:
            yield from self._all_new()
            return
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
        service = SetupService(self._server.client.api_client)
        answer = self._server.ask("say whether it is set up", service.get_setup)
        allowed = getattr(answer, "allowed", None)
        if not isinstance(allowed, bool):
            address = self._server.address
            raise StoreRefused(f"what answers at {address} is no InfluxDB 2.x; check store.url")
        return allowed

    def _onboard(self) -> Step:
        what = f"operator of {self._server.address}"
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
            service = SetupService(self._server.client.api_client)
            self._server.ask(f"create {what}", service.post_setup, request)
            where = "its token is the one given" if self._admin else place.put(token)
        self._admin, self._onboarded = token, True
        return Step(what, "created", f"user {USER}, {where}")

    def _all_new(self) -> Iterator[Step]:
        """What a new organization would get, in a dry run."""
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
        api = self._server.client.organizations_api()
        found = self._server.find(f"look for {what}", api.find_organizations, org=name)
        if found == []:
            # An absent one is a 404: this token isn't allowed to see it.
            raise self._server.not_allowed(f"look for {what}")
        if found is not None:
            self._org_id = found[0].id
            return Step(what, "created" if self._onboarded else "there")
        if not self._dry_run:
            self._org_id = self._server.ask(f"create {what}", api.create_organization, name=name).id
        return Step(what, "created")

    def _bucket(self, name: str, retention_ms: int | None) -> Step:
        what = f"bucket {name}"
        api = self._server.client.buckets_api()
        retention_s = 0 if retention_ms is None else -(-retention_ms // 1000)
        look_for = f"look for {what}"
        found = self._server.find(look_for, api.find_buckets, name=name, org_id=self._org_id)
        if found is None or not found.buckets:
            wanted = retention_s, shard_s(retention_s)
            self._bucket_ids[name] = None
            if not self._dry_run:
                made = self._server.ask(
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
            self._server.ask(f"change {what}", api.update_bucket, bucket)
        if self._onboarded and name == self._store.bucket:
            # The server has made it a moment ago, with rules of its own.
            return Step(what, "created", _kept(*wanted))
        return Step(what, "changed", f"was {_kept(*present)}; is {_kept(*wanted)}")

    def _task(self, task: DownsamplingTask) -> Step:
        what = f"task {task.name!r}"
        api = self._server.client.tasks_api()
        # Names aren't unique on the server; with two of one name the first counts.
        look_for = f"look for {what}"
        found = self._server.ask(look_for, api.find_tasks, name=task.name, org_id=self._org_id)
        if not found:
            if not self._dry_run:
                request = TaskCreateRequest(org_id=self._org_id, flux=task.flux, status="active")
                self._server.ask(f"create {what}", api.create_task, task_create_request=request)
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
            self._server.ask(f"change {what}", api.update_task_request, present.id, update)
        return Step(what, "changed", "; ".join(differs))

    def _token(self, name: str) -> Step:
        what = f"token {self._described(name)!r}"
        api = self._server.client.authorizations_api()
        look_for = f"look for {what}"
        of_org = self._server.ask(look_for, api.find_authorizations, org_id=self._org_id)
        found = [token for token in of_org if token.description == self._described(name)]
        if found and name not in self._new_tokens:
            return self._judge_token(name, what, found[0])
        if self._dry_run:
            return Step(what, "changed" if found else "created", "a new secret")
        with self._keeper.place(name) as place:
            wanted = self._wanted(name)
            made = self._server.ask(
                f"create {what}", api.create_authorization, authorization=wanted
            )
            try:
                where = place.put(made.token)
            except BaseException:
                self._server.ask(f"take {what} back", api.delete_authorization, made.id)
                raise
        for old in found:
            self._server.ask(f"delete the old {what}", api.delete_authorization, old.id)
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
        server = Server(self._store.url, self._store.org)
        server.use(secret)
        try:
            find = server.client.buckets_api().find_buckets
            found = server.find("try a token", find, name=self._store.bucket)
        except StoreRefused:
            return False
        finally:
            server.close()
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
