"""Recorded traffic through the whole pipeline, held against an independent resample."""

import asyncio
import json
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal

import orjson
import pandas as pd
import pytest
from click.testing import CliRunner
from cryptofeed.connection import Connection

from ingest.budget import Budgets
from ingest.candles import CandleBook
from ingest.capture import INTERVALS, SELECTED
from ingest.capture_writer import CaptureWriter
from ingest.cli import main
from ingest.exchanges import EXCHANGES
from ingest.model import Event, Kline
from ingest.recording import record_capture
from ingest.replaying import replay_capture
from ingest.simulator.faults import Close
from marketdata.errors import ConfigError
from marketdata.schema import CANDLE_MS, MINUTE_MS
from tests.feeds import MINUTE_MS as MINUTE
from tests.feeds import Recorder, bybit_kline, bybit_row
from tests.recorded import RECORDED, recorded
from tests.service import configuration, fast_simulator, truth
from tests.waiting import eventually


def table(store, name):
    with sqlite3.connect(store) as connection:
        rows = pd.read_sql_query(f"select * from {name} order by symbol, time", connection)
    connection.close()
    return rows


def frames(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        _, _, text = line.partition(": ")
        if text.startswith("{"):
            yield json.loads(text)["data"]


@recorded
async def test_real_minutes_and_trades_of_2021_come_out_as_the_exchange_sent_them(tmp_path):
    folder = RECORDED / "binance_futures_capture"
    store = tmp_path / "replay.db"
    counts = await replay_capture(folder, store)
    assert counts["BINANCE_FUTURES"]["ohlcv_1m"] == 4
    assert counts["BINANCE_FUTURES"]["ohlcv_3m"] == 0, "30 seconds hold no whole candle"
    events = list(frames(folder / "BINANCE_FUTURES.ws.1.0"))
    minutes = table(store, "ohlcv_1m").set_index("symbol")
    for k in (e["k"] for e in events if e["e"] == "kline" and e["k"]["x"]):
        row = minutes.loc[f"{k['s'].removesuffix('USDT')}/USDT:USDT"]
        assert row["time"] == k["t"]
        expected = [float(k[name]) for name in "ohlcvq"]
        assert list(row[["open", "high", "low", "close", "volume", "quote_volume"]]) == expected
        assert (row["trades"], row["source"]) == (k["n"], "stream")


@recorded
async def test_the_minute_in_progress_equals_a_resample_of_its_trades(tmp_path):
    folder = RECORDED / "binance_futures_capture"
    store = tmp_path / "replay.db"
    await replay_capture(folder, store)
    events = list(frames(folder / "BINANCE_FUTURES.ws.1.0"))
    trades = pd.DataFrame([e for e in events if e["e"] == "aggTrade"])
    minute_ms = 1_626_992_760_000
    whole = 0
    for _, last in table_last(store).iterrows():
        assert last["minute_ms"] == minute_ms
        symbol = last["symbol"].replace("/", "").removesuffix(":USDT")
        klines = [e["k"] for e in events if e["e"] == "kline" and e["s"] == symbol]
        newest = max((k for k in klines if k["t"] == minute_ms), key=lambda k: k["L"])
        mine = trades[(trades["s"] == symbol) & (trades["T"] >= minute_ms)]
        # A kline may end within an aggregate of several trades, which then counts in part.
        mine = mine[mine["f"] <= newest["L"]]
        prices = mine["p"].astype(float)
        assert last["open"] == prices.iloc[0]
        assert last["high"] == prices.max()
        assert last["low"] == prices.min()
        assert last["close"] == prices.iloc[-1]
        total = float(sum(map(Decimal, mine["q"])))
        ends_whole = mine["l"].iloc[-1] == newest["L"]
        assert last["volume"] == total if ends_whole else last["volume"] < total
        whole += ends_whole
    assert whole >= 2


def table_last(store):
    with sqlite3.connect(store) as connection:
        rows = pd.read_sql_query("select * from last", connection)
    connection.close()
    return rows


@recorded
def test_candles_of_real_minutes_equal_a_resample_by_pandas():
    minutes = pd.read_feather(RECORDED / "freqtrade_history" / "UNITTEST_BTC-1m.feather")
    open_ms = minutes["date"].astype("datetime64[ms, UTC]").astype("int64")
    book = CandleBook(horizon_ms=2**53)
    values = minutes[["open", "high", "low", "close", "volume"]].to_numpy().tolist()
    for time_ms, (open_, high, low, close, volume) in zip(open_ms.tolist(), values, strict=True):
        kline = Kline(
            "X", "UNITTEST/BTC", time_ms, open_, high, low, close,
            Decimal(repr(volume)), None, None, True, time_ms + MINUTE_MS,
        )  # fmt: skip
        book.apply([kline])
    traded = minutes[minutes["volume"] > 0].set_index("date")
    rules = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    expected = traded.resample("3min").agg(rules).dropna()
    whole = minutes.set_index("date")["open"].resample("3min").count()
    expected = expected[whole.reindex(expected.index) == 3]
    mine = (
        pd.DataFrame([c for c in book.candles.values() if c.volume > 0])
        .set_index("time")
        .sort_index()
    )
    assert list(mine.index) == list(expected.index.astype("datetime64[ms, UTC]").astype("int64"))
    for column in ("open", "high", "low", "close"):
        assert (mine[column].to_numpy() == expected[column].to_numpy()).all()
    assert abs(mine["volume"].to_numpy() - expected["volume"].to_numpy()).max() < 1e-6
    assert len(mine) > 4_000


@pytest.mark.leaks  # aiofile, under cryptofeed's file callback, keeps its kernel context for good
async def test_a_recorded_run_replays_to_the_candles_of_the_market(tmp_path):
    pairs = {
        "BINANCE_FUTURES": ["BTC/USDT:USDT", "币安人生/USDT:USDT"],
        "BYBIT": ["BTC/USDT:USDT", "BTC/USDT"],
    }
    async with fast_simulator() as simulator:
        settings = configuration(simulator, tmp_path, 9, pairs=pairs)
        await record_capture(settings, simulator.clock, tmp_path / "raw", asyncio.Event(), 500.0)
        store = tmp_path / "replay.db"
        counts = await replay_capture(tmp_path / "raw", store)
        assert counts["BINANCE_FUTURES"].get("unused", 0) == 0
        candles = table(store, "ohlcv_3m")
        compared = 0
        for (exchange, pair), rows in candles.groupby(["exchange", "symbol"]):
            start_ms, end_ms = int(rows["time"].min()), int(rows["time"].max()) + CANDLE_MS
            expected = await truth(simulator, exchange, pair, start_ms, end_ms)
            for row in rows.itertuples(index=False):
                assert row[3:9] == expected[row.time][:6]
                compared += 1
    assert {exchange for exchange, _ in candles.groupby("exchange")} == set(pairs)
    assert compared >= 3


PAIRS = {
    "BINANCE_FUTURES": {"BTC/USDT:USDT", "币安人生/USDT:USDT"},
    "BYBIT": {"BTC/USDT:USDT", "ETH/USDT:USDT", "BTC/USDT"},
}


class Witness:
    """What an observer of a replay is told, and every event with its time."""

    def __init__(self, replay):
        self.clock = replay.clock
        self.seconds: list[int] = []
        self.told: list[tuple[int, str, str]] = []
        self.events: list[tuple[Event, int]] = []
        put = replay.inbox.put

        def witnessed(event, received_ms):
            self.events.append((event, received_ms))
            put(event, received_ms)

        replay.inbox.put = witnessed

    async def on_second(self, now_ms):
        assert self.clock.now_ms() == now_ms
        self.seconds.append(now_ms)

    def on_open(self, connection):
        self.told.append((self.clock.now_ms(), connection, "open"))

    def on_close(self, connection, cause):
        self.told.append((self.clock.now_ms(), connection, cause))


async def replayed(folder, store, **window):
    witnesses: dict[str, Witness] = {}

    def observe(replay):
        return witnesses.setdefault(replay.exchange, Witness(replay))

    counts = await replay_capture(folder, store, observe=observe, **window)
    return counts, witnesses


@asynccontextmanager
async def captured(folder, monkeypatch, segment_ms=10_000):
    """Both exchanges' feeds on a simulator, with a capture; what they said, by exchange."""
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(fast_simulator())
        clock = simulator.clock
        writer = CaptureWriter(folder, clock, max_bytes=2**30, segment_ms=segment_ms)
        await writer.start()
        stack.push_async_callback(writer.close)
        monkeypatch.setattr(Connection, "raw_data_callback", writer)
        feeds, recorders = {}, {}
        for exchange, pairs in PAIRS.items():
            adapter = EXCHANGES[exchange]
            rest = adapter.rest(Budgets(), clock, simulator.url, None)
            stack.push_async_callback(rest.close)
            metadata, hours = await rest.catalogue(), await rest.intervals()
            catalogue = rest.markets(metadata).with_intervals(hours, rest.interval_hours)
            chosen = {"pairs": sorted(pairs), "channels": adapter.channels}
            for what, where in ((metadata, "/m"), (hours, INTERVALS), (chosen, SELECTED)):
                writer.metadata(exchange, rest.client.address + where, orjson.dumps(what))
            recorder = recorders[exchange] = Recorder()
            feed = feeds[exchange] = adapter.feed(
                [catalogue.find(pair) for pair in sorted(pairs)],
                adapter.channels,
                recorder.on(*adapter.channels),
                clock,
                ws_url=simulator.ws_url,
            )
            feed.start(asyncio.get_running_loop())
            stack.push_async_callback(feed.shutdown)
            await feed.wait_for_data()
        yield simulator, feeds, recorders


def said(recorder, start_ms=0, end_ms=2**53):
    times = (round(received_s * 1000) for received_s in recorder.received_s)
    both = zip(recorder.events, times, strict=True)
    return [(event, time_ms) for event, time_ms in both if start_ms <= time_ms < end_ms]


def in_order(events):
    """Two connections' messages of one millisecond have no order."""
    return sorted(events, key=lambda pair: (pair[1], repr(pair[0])))


async def test_every_window_of_a_capture_replays_to_the_events_of_the_live_run(
    tmp_path, monkeypatch
):
    folder = tmp_path / "capture"
    async with captured(folder, monkeypatch) as (simulator, feeds, recorders):
        began_ms = simulator.clock.now_ms()
        await eventually(lambda: simulator.clock.now_ms() - began_ms > 40_000, 10)
        simulator.inject(Close(exchange="BYBIT", code=1006))
        await eventually(lambda: feeds["BYBIT"].lane_statuses()[0].reconnects >= 1, 10)
        await eventually(lambda: simulator.clock.now_ms() - began_ms > 100_000, 10)
    assert len(list(folder.iterdir())) > 20
    _, witnesses = await replayed(folder, tmp_path / "all.db")
    for exchange, witness in witnesses.items():
        assert in_order(witness.events) == in_order(said(recorders[exchange]))
        assert {event.symbol for event, _ in witness.events} == PAIRS[exchange]
        assert witness.seconds == list(range(witness.seconds[0], witness.seconds[-1] + 1, 1_000))
    linear = [what for _, name, what in witnesses["BYBIT"].told if "linear" in name]
    assert linear[0] == linear[2] == "open"
    assert "no close frame" in linear[1]
    assert linear[3:] == ["by us"]
    since_ms = began_ms + 25_000
    window = {"since_ms": since_ms, "until_ms": since_ms + 10_000}
    counts, witnesses = await replayed(folder, tmp_path / "window.db", **window)
    for exchange, witness in witnesses.items():
        live = said(recorders[exchange], since_ms, since_ms + 10_000)
        inside = [pair for pair in witness.events if pair[1] >= since_ms]
        assert in_order(inside) == in_order(live)
        assert len(live) > 10
        assert len(witness.seconds) == 10
        assert {(when, what) for when, _, what in witness.told} == {(since_ms, "open")}
        assert counts[exchange].get("damaged", 0) == counts[exchange].get("unused", 0) == 0
    rows = table(tmp_path / "window.db", "mark_price")
    assert set(rows["symbol"]) == {"BTC/USDT:USDT", "ETH/USDT:USDT", "币安人生/USDT:USDT"}
    assert rows["time"].min() > since_ms - 5_000


MARKETS = {
    "linear": [
        {
            "symbol": "BTCUSDT", "baseCoin": "BTC", "quoteCoin": "USDT", "status": "Trading",
            "contractType": "LinearPerpetual", "settleCoin": "USDT", "fundingInterval": 480,
        }
    ]
}  # fmt: skip
URL = "wss://stream.bybit.com/v5/public/linear"
BEGIN_S = MINUTE // 1000 + 40


def hand_made(folder, *lines, lane="linear-1", part=0):
    """A capture of Bybit; seconds in the lines count from BEGIN_S."""
    names = orjson.dumps(MARKETS).decode()
    (folder / "BYBIT.0").write_text(f"https://x/markets -> {BEGIN_S}: {names}\n")
    text = "".join(f"{line}\n" for line in lines)
    (folder / f"BYBIT.ws.{lane}.{part}").write_text(text)


def at(second, text=None, told=None):
    if text is None:
        return f"{URL} <-> {BEGIN_S + second}{'' if told is None else f' {told}'}"
    return f"{BEGIN_S + second}: {text}"


def told_of(witness):
    return [((ms - BEGIN_S * 1000) / 1000, what) for ms, _, what in witness.told]


async def test_an_observer_lives_through_every_second_and_every_end_of_a_connection(tmp_path):
    kline = bybit_kline().decode()
    hand_made(
        tmp_path,
        at(0.2), at(0.3, told="closed: refused: 403"),
        at(1.2), at(1.3, told="opened"), at(1.4, kline),
        " <-> " + str(BEGIN_S + 1.5) + " lost: 12",
        at(61.5, kline), at(62.1), at(62.5, kline), at(64.2, told="closed: reset"),
    )  # fmt: skip
    counts, witnesses = await replayed(tmp_path, tmp_path / "replay.db")
    (witness,) = witnesses.values()
    assert told_of(witness) == [
        (0.3, "refused: 403"),
        (1.3, "open"),
        (62.1, "its end was not captured"),
        (62.5, "open"),
        (64.2, "reset"),
    ]
    assert witness.seconds == [(BEGIN_S + s) * 1000 for s in range(1, 65)]
    assert (counts["BYBIT"]["messages"], counts["BYBIT"]["lost"]) == (3, 12)


async def test_cryptofeeds_own_capture_opens_a_connection_with_its_first_frame(tmp_path):
    hand_made(tmp_path, at(0.2), at(0.9, bybit_kline().decode()))
    _, witnesses = await replayed(tmp_path, tmp_path / "replay.db")
    assert told_of(witnesses["BYBIT"]) == [(0.9, "open")]


async def test_a_window_ends_with_its_time_if_the_capture_goes_on_and_else_with_the_capture(
    tmp_path,
):
    hand_made(tmp_path, at(0), at(0.5, told="opened"), at(1.5, "{}"), at(90.5, "{}"))
    begin_ms = BEGIN_S * 1000
    for until_s, last_s in ((60, 60), (100, 90)):
        _, witnesses = await replayed(
            tmp_path, tmp_path / f"{until_s}.db",
            since_ms=begin_ms + 30_000, until_ms=begin_ms + until_s * 1000,
        )  # fmt: skip
        (witness,) = witnesses.values()
        assert told_of(witness) == [(30, "open")]
        assert witness.seconds == [begin_ms + s * 1000 for s in range(31, last_s + 1)]


async def test_bad_lines_and_messages_are_counted_and_cost_only_themselves(tmp_path):
    good = bybit_kline(bybit_row(confirm=True)).decode()
    hand_made(
        tmp_path, at(0), at(1, told="opened"), at(2, '{"topic": "kline.1.BTCUSDT", "da'), "noise",
        at(25, good),
    )  # fmt: skip
    with (tmp_path / "BYBIT.ws.linear-1.0").open("a") as file:
        file.write(at(26, good)[:-40])
    counts, _ = await replayed(tmp_path, tmp_path / "replay.db")
    found = counts["BYBIT"]
    assert (found["messages"], found["unused"], found["damaged"]) == (2, 1, 2)
    assert found["ohlcv_1m"] == 1


async def test_a_capture_without_names_is_refused(tmp_path):
    hand_made(tmp_path, at(0), at(1, "{}"))
    (tmp_path / "BYBIT.0").unlink()
    with pytest.raises(ConfigError, match="no metadata"):
        await replay_capture(tmp_path, tmp_path / "replay.db")


@pytest.mark.parametrize(
    ("since", "messages"),
    [
        (datetime.fromtimestamp(BEGIN_S + 1, UTC).strftime("%Y-%m-%dT%H:%M:%S"), 2),
        (str((BEGIN_S + 2) * 1000), 1),
    ],
    ids=["iso", "milliseconds"],
)
def test_the_command_replays_a_window(tmp_path, since, messages):
    hand_made(tmp_path, at(0), *(at(second, "{}") for second in range(5)))
    until = str((BEGIN_S + 3) * 1000)
    command = ["replay", str(tmp_path), "--into", str(tmp_path / "replay.db"), "--since", since]
    done = CliRunner().invoke(main, [*command, "--until", until])
    assert done.exit_code == 0, done.output
    assert f"messages {messages}," in done.output


def test_the_command_says_which_times_it_takes(tmp_path):
    command = ["replay", str(tmp_path), "--into", str(tmp_path / "x.db"), "--since", "noon"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert "2026-11-20T10:00" in done.output
