from hypothesis import given
from hypothesis import strategies as st

from ingest.gaps import Ledger, Outages
from marketdata.schema import MINUTE_MS, Gap

KEY = ("BYBIT", "BTC/USDT:USDT", "candles")
minutes = st.sets(st.integers(0, 60).map(lambda n: n * MINUTE_MS), min_size=1)


def covered(gaps):
    return {t for gap in gaps for t in range(gap.time, gap.until_ms, MINUTE_MS)}


@given(minutes)
def test_open_gaps_are_exactly_what_is_missing_one_row_a_run(missing):
    ledger = Ledger(MINUTE_MS)
    ledger.missing(KEY, sorted(missing), "silent")
    rows = ledger.rows()
    assert covered(rows) == missing
    starts = {gap.time for gap in rows}
    assert starts == {t for t in missing if t - MINUTE_MS not in missing}
    assert ledger.open == len(rows)


@given(minutes, st.data())
def test_a_gap_closes_when_its_last_minute_is_found_and_tells_the_worst_of_them(missing, data):
    ledger = Ledger(MINUTE_MS)
    ledger.missing(KEY, sorted(missing), "disconnected")
    ledger.rows()
    rank = {"empty": 0, "repaired": 1, "lost": 2}
    found = {}
    for time_ms in data.draw(st.permutations(sorted(missing))):
        found[time_ms] = data.draw(st.sampled_from(sorted(rank)))
        ledger.found(KEY, [time_ms], found[time_ms], now_ms=9 * 10**6)
    rows = ledger.rows()
    assert covered(rows) == missing
    for gap in rows:
        inside = [found[t] for t in range(gap.time, gap.until_ms, MINUTE_MS)]
        assert gap.state == max(inside, key=rank.__getitem__)
        assert gap.closed_ms == 9 * 10**6
    assert ledger.open == 0
    assert sum(ledger.closed.values()) == len(rows)


def test_what_is_known_to_be_missing_changes_nothing():
    ledger = Ledger(MINUTE_MS)
    ledger.missing(KEY, [0, MINUTE_MS], "silent")
    ledger.rows()
    ledger.missing(KEY, [0, MINUTE_MS], "disconnected")
    assert ledger.rows() == []


def test_a_run_that_goes_on_stays_one_row_even_when_its_minutes_are_found_one_by_one():
    ledger = Ledger(MINUTE_MS)
    for n in range(60):
        ledger.missing(KEY, [n * MINUTE_MS], "silent")
        ledger.found(KEY, [n * MINUTE_MS], "empty", now_ms=(n + 1) * MINUTE_MS)
        (row,) = ledger.rows()
        assert (row.time, row.until_ms) == (0, (n + 1) * MINUTE_MS)
    assert row.state == "empty"
    assert ledger.closed["empty"] == 1


def test_another_reason_is_another_gap():
    ledger = Ledger(MINUTE_MS)
    ledger.missing(KEY, [0], "silent")
    ledger.missing(KEY, [MINUTE_MS], "disconnected")
    assert [(gap.time, gap.reason) for gap in ledger.rows()] == [
        (0, "silent"),
        (MINUTE_MS, "disconnected"),
    ]


def test_gaps_that_an_earlier_run_left_open_are_closed_by_what_is_found_now():
    before = Ledger(MINUTE_MS)
    before.missing(KEY, [0, MINUTE_MS], "venue_down")
    ledger = Ledger(MINUTE_MS)
    ledger.load(before.rows())
    ledger.found(KEY, [0, MINUTE_MS], "repaired", now_ms=500_000)
    (row,) = ledger.rows()
    assert (row.time, row.until_ms, row.reason, row.state) == (0, 120_000, "venue_down", "repaired")


def test_an_outage_runs_from_the_last_tick_to_the_next_one():
    outages = Outages()
    key = ("BYBIT", "BTC/USDT:USDT", "mark_price")
    outages.begin(key, 1_000, "silent", now_ms=12_000)
    outages.begin(key, 5_000, "silent", now_ms=13_000)
    assert [gap.until_ms for gap in outages.rows()] == [12_000]
    assert outages.ended() == []
    outages.resume(key, 60_000)
    ((_, gap),) = outages.ended()
    assert (gap.time, gap.until_ms, gap.state) == (1_000, 60_000, "open")
    outages.settle(key, 1_000, "repaired", now_ms=90_000)
    (row,) = outages.rows()
    assert (row.time, row.state, row.closed_ms) == (1_000, "repaired", 90_000)
    assert outages.open == 0
    outages.begin(key, 100_000, "silent", now_ms=120_000)
    assert outages.open == 1


def test_a_gap_that_overlaps_one_of_another_collector_closes_with_it():
    theirs = Ledger(MINUTE_MS)
    theirs.missing(KEY, [0, MINUTE_MS], "disconnected")
    ledger = Ledger(MINUTE_MS)
    ledger.missing(KEY, [MINUTE_MS], "silent")
    ledger.rows()
    ledger.load(theirs.rows())
    assert ledger.open == 2
    ledger.found(KEY, [0, MINUTE_MS], "repaired", now_ms=500_000)
    assert sorted((gap.time, gap.state) for gap in ledger.rows()) == [
        (0, "repaired"),
        (MINUTE_MS, "repaired"),
    ]


def test_a_gap_that_is_known_is_not_taken_over_again():
    ledger = Ledger(MINUTE_MS)
    ledger.missing(KEY, [0, MINUTE_MS], "silent")
    (row,) = ledger.rows()
    ledger.found(KEY, [0], "repaired", now_ms=500_000)
    ledger.load([row])
    ledger.found(KEY, [MINUTE_MS], "repaired", now_ms=500_000)
    assert ledger.open == 0


def test_an_outage_that_another_run_left_open_is_settled_once():
    outages = Outages()
    key = ("BYBIT", "BTC/USDT:USDT", "funding")
    left = Gap(*key, 1_000, 20_000, "silent", "open", None)
    outages.load([left, left._replace(time=30_000, until_ms=40_000, state="lost")])
    assert outages.ended() == [(key, left)]
    outages.settle(key, 1_000, "lost", now_ms=90_000)
    assert outages.ended() == []
    outages.settle(key, 1_000, "repaired", now_ms=91_000)
    (row,) = outages.rows()
    assert (row.state, row.closed_ms) == ("lost", 90_000)
    outages.settle(key, 1_000, "repaired", now_ms=92_000)
    assert outages.rows() == []
