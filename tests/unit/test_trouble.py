from ingest.trouble import troubles

LIVE = {"state": "live", "since_ms": 0, "event_ms": 9, "age_ms": 1}
STORE = {"kind": "influxdb", "state": "live", "error": None, "aside": 0, "last_success_ms": 99}


def status(**changes):
    exchange = {
        "state": "live", "clock_ahead_ms": 0,
        "connections": [{"id": "linear-1", "state": "live", "last_data_ms": 9, "last_error": None}],
        "pairs": {f"C{n}/USDT:USDT": {"mark_price": dict(LIVE)} for n in range(5)},
    }  # fmt: skip
    return {
        "exchanges": {"BYBIT": exchange | changes.pop("exchange", {})},
        "store": STORE,
        "outbox": {"rows": 0, "oldest_ms": None, "state": "live"},
        "redis": {"state": "live"},
        "gaps": {"open": 0},
    } | changes


def test_when_nothing_is_wrong_there_is_nothing_to_say():
    assert troubles(status()) == []


def test_a_store_that_is_away_says_what_waits_and_since_when():
    down = STORE | {"state": "down", "error": "connection refused", "aside": 1}
    outbox = {"rows": 12_345, "oldest_ms": 77, "state": "live"}
    (trouble,) = troubles(status(store=down, outbox=outbox))
    assert "connection refused" in trouble.what
    assert trouble.since_ms == 99, "older rows may wait that failed alone"
    never = down | {"last_success_ms": None}
    (since_the_start,) = troubles(status(store=never, outbox=outbox))
    assert since_the_start.since_ms == 77
    assert "12,345 rows wait on disk" in trouble.doing


def test_a_store_that_fails_on_some_rows_only_is_told():
    store = STORE | {"aside": 1}
    (trouble,) = troubles(status(store=store, outbox={"rows": 9, "oldest_ms": 77, "state": "live"}))
    assert "fails on some rows, and takes the others" in trouble.what
    assert trouble.since_ms == 77


def test_pairs_that_fail_alike_are_one_line_that_names_a_few():
    pairs = {
        f"C{n}/USDT:USDT": {"mark_price": LIVE | {"state": "late", "since_ms": 100 + n}}
        for n in range(5)
    }
    (trouble,) = troubles(status(exchange={"pairs": pairs}))
    assert "mark_price of 5 pairs is late (C0/USDT:USDT, C1/USDT:USDT, C2/" in trouble.what
    assert trouble.since_ms == 100


def test_an_exchange_that_is_down_is_one_line_whatever_its_pairs_say():
    pairs = {"C/USDT:USDT": {"mark_price": LIVE | {"state": "venue_down", "since_ms": 5}}}
    changes = {"state": "venue_down", "pairs": pairs}
    (trouble,) = troubles(status(exchange=changes))
    assert (trouble.what, trouble.since_ms) == ("BYBIT is down", 5)


def test_a_wrong_clock_is_reported():
    (trouble,) = troubles(status(exchange={"clock_ahead_ms": -300_000}))
    assert "differ by -300 s" in trouble.what


def test_a_connection_that_is_down_says_why():
    lane = {"id": "linear-1", "state": "disconnected", "last_data_ms": 50, "last_error": "HTTP 503"}
    (trouble,) = troubles(status(exchange={"connections": [lane]}))
    assert "linear-1 is disconnected: HTTP 503" in trouble.what


def test_an_outbox_that_cannot_be_written_comes_first() -> None:
    outbox = {"rows": 0, "oldest_ms": None, "state": "down", "error": "no space", "since_ms": 5}
    store = {"kind": "sqlite", "state": "down", "error": "no space", "last_success_ms": 4}
    first, second = troubles(status(store=store, outbox=outbox))
    assert (first.what, first.since_ms) == ("nothing can be kept: no space", 5)
    assert "takes nothing" in second.what
