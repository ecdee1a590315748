"""The REST side over real sockets: every way in which an exchange says no, or says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ingest.budget import Budgets, Limit
from ingest.clock import Clock
from ingest.rest import Dialect, RestClient
from marketdata.errors import (
    ExchangeRefused,
    ExchangeUnavailable,
    MarketDataError,
    RateLimited,
)
from tests.venues import Venue

LIMIT = Limit("weight", 100, 60_000)
DIALECT = Dialect("TEST", (LIMIT,), used_header="X-MBX-USED-WEIGHT-1M")
NO_WAIT_S = 0.3
"""Far less than any hold: what isn't answered within it is waiting for the budget."""


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    venue = Venue()
    await venue.start()
    yield venue
    await venue.stop()


@pytest.fixture
async def client(venue: Venue) -> AsyncIterator[RestClient]:
    async with RestClient(venue.url, DIALECT, Budgets(), Clock()) as client:
        yield client


async def test_paths_stay_and_scheme_host_and_port_come_from_the_base(venue: Venue) -> None:
    venue.says({"serverTime": 5})
    async with RestClient(f"{venue.url}/some/where", DIALECT, Budgets(), Clock()) as client:
        answer = await client.get("/fapi/v1/klines", {"symbol": "币安人生USDT", "limit": 5})
    assert answer.body == {"serverTime": 5}
    assert venue.asked[0].path == "/fapi/v1/klines"
    assert dict(venue.asked[0].query) == {"symbol": "币安人生USDT", "limit": "5"}


@pytest.mark.parametrize("status", [400, 404, 451])
async def test_a_refusal_carries_the_exchange_s_words(
    venue: Venue, client: RestClient, status: int
) -> None:
    venue.says({"code": -1121, "msg": "Invalid symbol."}, status=status)
    with pytest.raises(ExchangeRefused, match=rf"/fapi/v1/klines.*{status}.*Invalid symbol\."):
        await client.get("/fapi/v1/klines")
    assert client.refused == {"/fapi/v1/klines": 1}


@pytest.mark.parametrize("status", [403, 418, 429])
@pytest.mark.parametrize(
    ("header", "waits_s"), [(None, 120), ("7", 120), ("1800", 1800), ("soon", 120)]
)
async def test_a_rate_limit_lasts_two_minutes_at_least_and_longer_where_the_exchange_says_so(
    venue: Venue, client: RestClient, status: int, header: str | None, waits_s: int
) -> None:
    venue.says({}, status=status, **({} if header is None else {"Retry_After": header}))
    with pytest.raises(RateLimited) as caught:
        await client.get("/fapi/v1/time")
    assert caught.value.retry_after_s == waits_s


async def test_a_ban_without_a_header_lasts_as_long_as_its_text_says(
    venue: Venue, client: RestClient
) -> None:
    until_ms = Clock().now_ms() + 3_600_000
    venue.says({"code": -1003, "msg": f"IP(1.2.3.4) banned until {until_ms}."}, status=418)
    with pytest.raises(RateLimited) as caught:
        await client.get("/fapi/v1/time")
    assert caught.value.retry_after_s == pytest.approx(3_600, abs=5)


async def test_after_a_rate_limit_nobody_who_shares_the_budgets_asks_that_address(
    venue: Venue,
) -> None:
    venue.says({}, status=429)
    budgets, clock = Budgets(), Clock()
    async with (
        RestClient(venue.url, DIALECT, budgets, clock) as one,
        RestClient(venue.url, DIALECT, budgets, clock) as another,
    ):
        with pytest.raises(RateLimited):
            await one.get("/fapi/v1/time")
        venue.says({})
        for client in (one, another):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(NO_WAIT_S):
                    await client.get("/fapi/v1/time")
    assert len(venue.asked) == 1


async def test_a_hold_ends_and_the_one_who_waited_is_answered(venue: Venue) -> None:
    clock = Clock(speed=2_000)
    async with RestClient(venue.url, DIALECT, Budgets(), clock) as client:
        venue.says({}, status=429)
        asked_ms = clock.now_ms()
        with pytest.raises(RateLimited):
            await client.get("/fapi/v1/time")
        venue.says({"serverTime": 1})
        answer = await client.get("/fapi/v1/time")
    assert answer.sent_ms - asked_ms >= 120_000


@pytest.mark.parametrize("status", [408, 500, 502, 503, 302])
async def test_a_server_in_trouble_is_unavailable_and_is_asked_once(
    venue: Venue, client: RestClient, status: int
) -> None:
    venue.says({"msg": "busy"}, status=status, Location="/elsewhere")
    with pytest.raises(ExchangeUnavailable, match=str(status)) as caught:
        await client.get("/fapi/v1/time")
    assert not isinstance(caught.value, RateLimited)
    assert len(venue.asked) == 1
    assert client.failed == {"/fapi/v1/time": 1}


@pytest.mark.parametrize("text", ["<html><title>Just a moment...</title></html>", "", "{", "ok"])
async def test_what_is_not_json_is_unavailable(venue: Venue, client: RestClient, text: str) -> None:
    venue.says_text(text)
    with pytest.raises(ExchangeUnavailable, match="expected JSON"):
        await client.get("/fapi/v1/time")


async def test_a_challenge_page_with_403_is_a_rate_limit(venue: Venue, client: RestClient) -> None:
    venue.says_text("<html>blocked</html>", status=403)
    with pytest.raises(RateLimited, match="an HTML page"):
        await client.get("/fapi/v1/time")


async def test_a_reset_connection_is_unavailable(venue: Venue, client: RestClient) -> None:
    venue.resets()
    with pytest.raises(ExchangeUnavailable):
        await client.get("/fapi/v1/time")


async def test_a_server_that_never_answers_is_unavailable_after_the_time_limit(
    venue: Venue,
) -> None:
    venue.hangs()
    async with RestClient(
        venue.url, DIALECT, Budgets(), Clock(), total_timeout_s=NO_WAIT_S
    ) as client:
        with pytest.raises(ExchangeUnavailable, match="no answer in time"):
            await client.get("/fapi/v1/time")


async def test_a_refused_connection_is_unavailable(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    async with RestClient(url, DIALECT, Budgets(), Clock()) as client:
        with pytest.raises(ExchangeUnavailable, match=str(free_port)):
            await client.get("/fapi/v1/time")


async def test_calls_wait_for_the_budget_in_the_order_of_asking(venue: Venue) -> None:
    clock = Clock(speed=1_000)
    dialect = Dialect("TEST", (Limit("weight", 2, 10_000, sliding=True),))
    async with RestClient(venue.url, dialect, Budgets(), clock) as client:
        started_ms = clock.now_ms()
        answers = await asyncio.gather(*(client.get("/fapi/v1/time") for _ in range(6)))
    times = [answer.sent_ms for answer in answers]
    assert times == sorted(times)
    assert all(time_ms - started_ms >= n // 2 * 10_000 for n, time_ms in enumerate(times))


async def test_a_caller_who_gives_up_waiting_costs_the_others_nothing(venue: Venue) -> None:
    dialect = Dialect("TEST", (LIMIT,))
    budgets = Budgets()
    budget = budgets.at(venue.url, (LIMIT,))["weight"]
    async with RestClient(venue.url, dialect, budgets, Clock()) as client:
        budget.hold(Clock().now_ms() + 60_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get("/fapi/v1/time", weight=100)
        budget.held_until_ms = 0
        await client.get("/fapi/v1/time", weight=100)
    assert client.weight == {"/fapi/v1/time": 100}


async def test_what_others_use_at_the_address_counts_as_soon_as_the_exchange_tells(
    venue: Venue, client: RestClient
) -> None:
    venue.says({}, X_MBX_USED_WEIGHT_1M="100")
    await client.get("/fapi/v1/time")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(NO_WAIT_S):
            await client.get("/fapi/v1/time")
    assert client.requests == {"/fapi/v1/time": 1}


async def test_requests_go_through_the_proxy(venue: Venue) -> None:
    proxy = venue.url.replace("http://", "http://user:secret@")
    async with RestClient("http://fapi.example", DIALECT, Budgets(), Clock(), proxy) as client:
        await client.get("/fapi/v1/time")
    asked = venue.asked[0].headers
    assert asked["Host"] == "fapi.example"
    assert asked["Proxy-Authorization"] == "Basic dXNlcjpzZWNyZXQ="


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("up", [True, False])
async def test_a_proxy_that_fails_is_named_without_its_password(
    venue: Venue, free_port: int, scheme: str, up: bool
) -> None:
    venue.says({}, status=407)
    port = venue.url.rpartition(":")[2] if up else free_port
    proxy = f"http://user:secret@127.0.0.1:{port}"
    url = f"{scheme}://fapi.example"
    async with RestClient(url, DIALECT, Budgets(), Clock(), proxy) as client:
        with pytest.raises(MarketDataError) as caught:
            await client.get("/fapi/v1/time")
        told = f"{caught.value} {caught.value.__cause__!r} {client.address}"
    assert f"127.0.0.1:{port}" in told
    assert "secret" not in told
