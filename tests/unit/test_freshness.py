import pytest

from ingest.freshness import DEADLINE_MS, channel_state, worst

FACTS = {"now_ms": 1_000_000, "since_ms": 0, "connected": True, "siblings_live": True}


def state(channel, age_ms, **facts):
    event_ms = None if age_ms is None else FACTS["now_ms"] - age_ms
    return channel_state(channel, event_ms=event_ms, **FACTS | facts)


@pytest.mark.parametrize("channel", DEADLINE_MS)
def test_a_channel_is_live_up_to_its_deadline(channel):
    assert state(channel, DEADLINE_MS[channel]) == "live"
    assert state(channel, DEADLINE_MS[channel] + 1, siblings_live=False) == "late"


def test_a_mark_price_that_comes_each_second_is_late_after_ten():
    assert state("mark_price", 10_001) == "late"


def test_a_market_without_trades_is_quiet_while_marks_flow_and_late_without_that_proof():
    assert state("candles", 600_000) == "quiet"
    assert state("last_price", None) == "quiet"
    assert state("candles", 600_000, siblings_live=False) == "late"
    assert state("funding", 600_000) == "late"


def test_without_a_connection_silence_is_disconnected_never_quiet():
    assert state("candles", 600_000, connected=False) == "disconnected"
    assert state("mark_price", 20_000, connected=False) == "disconnected"


def test_a_new_subscription_is_given_time():
    assert state("mark_price", None, since_ms=990_000) == "starting"
    assert state("mark_price", None, since_ms=980_000) == "late"
    assert state("mark_price", None, since_ms=990_000, connected=False) == "starting"
    assert state("mark_price", None, since_ms=980_000, connected=False) == "disconnected"


def test_the_worst_of_the_parts_is_the_state_of_the_whole():
    assert worst(["quiet", "live"]) == "quiet"
    assert worst(["live", "venue_down", "late"]) == "venue_down"
    assert worst([]) == "starting"
