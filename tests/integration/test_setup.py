"""`ingest setup` on real servers: what it makes, what it leaves alone, and what it tells."""

import errno
import json
import os
import stat
import time
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from ingest.cli import main
from ingest.setup import Folder
from ingest.setup_influx import InfluxSetup
from ingest.sinks.influx import InfluxSink
from marketdata.config import load_config
from marketdata.errors import ConfigError
from marketdata.schema import LastPrice, Ohlcv
from marketdata.settings import InfluxStore
from readers.sources.influx import InfluxSource
from tests.servers.influx import InfluxServer, call
from tests.servers.process import ServerProcess, free_port
from tests.waiting import eventually_sync

DAY_S = 86_400
MINUTE_MS = 60_000


class FreshInflux(InfluxServer):
    """One that nobody has set up yet; `token` is the operator's once the test knows it."""

    def start(self):
        ServerProcess.start(self)

    def request(self, method, path, **body):
        answer = call(method, self.url + path, self.token, json=body or None)
        assert answer.status < 300, answer.data
        return answer.json()

    def get(self, path):
        return self.request("GET", path)

    def state(self):
        """Everything that a setup could change, without what the server counts by itself."""
        org = self.get("/api/v2/orgs?org=trading")["orgs"][0]["id"]
        tasks = self.get(f"/api/v2/tasks?orgID={org}")["tasks"]
        return {
            "orgs": [found["name"] for found in self.get("/api/v2/orgs")["orgs"]],
            "buckets": {
                bucket["name"]: (bucket["id"], bucket["updatedAt"], bucket["retentionRules"])
                for bucket in self.get(f"/api/v2/buckets?orgID={org}")["buckets"]
            },
            "tasks": [(task["id"], task.get("updatedAt"), task["flux"]) for task in tasks],
            "tokens": self.get(f"/api/v2/authorizations?orgID={org}")["authorizations"],
        }


@pytest.fixture
def fresh(influx_program, tmp_path):
    server = FreshInflux(influx_program, tmp_path / "influx")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def config(tmp_path):
    def write(url, *, retention="30d", token_file=None):
        path = tmp_path / "config.yaml"
        ticks = {"bucket": "market_data_ticks", "retention": retention}
        store = {
            "kind": "influxdb", "url": url, "org": "trading", "bucket": "market_data",
            "token": {"file": token_file} if token_file else "${INFLUXDB_TOKEN}", "ticks": ticks,
        }  # fmt: skip
        exchanges = {"BYBIT": {"pairs": ["BTC/USDT"]}}
        path.write_text(json.dumps({"store": store, "exchanges": exchanges}))
        return path

    return write


def setup(path, *options, code=0, **environ):
    absent = {"INFLUXDB_TOKEN": None, "INFLUXDB_ADMIN_TOKEN": None, "INFLUXDB_ADMIN_PASSWORD": None}
    arguments = ["setup", "--config", str(path), *map(str, options)]
    done = CliRunner().invoke(main, arguments, env=absent | environ)
    assert done.exit_code == code, (done.output, done.exception)
    return done


def secret(folder, name):
    return (folder / f"{name}.token").read_text().strip()


def write(server, bucket, token, line="last_price,exchange=X,symbol=A/B price=1.0"):
    url = f"{server.url}/api/v2/write?org=trading&bucket={bucket}&precision=ms"
    return call("POST", url, token, body=line.encode()).status


def test_a_fresh_server_gets_everything_and_a_second_run_changes_nothing(fresh, config, tmp_path):
    path, folder = config(fresh.url), tmp_path / "tokens"
    first = setup(path, "--tokens", folder).stdout.splitlines()
    assert [line.partition(": created")[1] for line in first] == [": created"] * len(first)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes == {"admin.token": 0o600, "service.token": 0o600, "readers.token": 0o600}
    fresh.token = secret(folder, "admin")
    state = fresh.state()
    rules = {name: rules[0] for name, (_, _, rules) in state["buckets"].items()}
    kept = {
        name: (rule["everySeconds"], rule["shardGroupDurationSeconds"])
        for name, rule in rules.items()
        if not name.startswith("_")
    }
    assert kept == {
        "market_data": (0, 30 * DAY_S),
        "market_data_ticks": (30 * DAY_S, DAY_S),
    }
    second = setup(path, "--tokens", folder).stdout.splitlines()
    assert len(second) == len(first) - 1  # there is an operator, and nothing to say about it
    assert all(": there" in line for line in second)
    assert fresh.state() == state


def test_a_dry_run_changes_nothing(fresh, config, tmp_path):
    path, folder = config(fresh.url), tmp_path / "tokens"
    told = setup(path, "--dry-run", "--tokens", folder).stdout
    assert told.count("would be created") == 8
    assert not folder.exists()
    assert call("GET", f"{fresh.url}/api/v2/setup").json() == {"allowed": True}
    setup(path, "--tokens", folder)
    fresh.token = secret(folder, "admin")
    state, files = fresh.state(), {name: secret(folder, name) for name in ("service", "readers")}
    path = config(fresh.url, retention="90d")
    told = setup(path, "--dry-run", "--tokens", folder, "--new-token", "service").stdout
    assert "bucket market_data_ticks: would be changed (was kept 30d" in told
    assert "token 'market_data: service': would be changed" in told
    assert fresh.state() == state
    assert files == {name: secret(folder, name) for name in files}


def test_a_changed_retention_is_told_and_done(fresh, config, tmp_path):
    folder = tmp_path / "tokens"
    setup(config(fresh.url), "--tokens", folder)
    fresh.token = secret(folder, "admin")
    before = "30d"
    for retention, seconds, shard_s in (("90d", 90 * DAY_S, 30 * DAY_S), ("6h", DAY_S // 4, 3_600)):
        told = setup(config(fresh.url, retention=retention), "--tokens", folder).stdout
        assert f"bucket market_data_ticks: changed (was kept {before}" in told
        before = retention
        (rule,) = fresh.state()["buckets"]["market_data_ticks"][2]
        assert (rule["everySeconds"], rule["shardGroupDurationSeconds"]) == (seconds, shard_s)
    assert "task 'market_data: late ticks to minutes': changed" in told
    assert "token 'market_data: service': there" in told


def test_what_somebody_has_made_longer_or_changed_is_mended_or_left(fresh, config, tmp_path):
    path, folder = config(fresh.url), tmp_path / "tokens"
    setup(path, "--tokens", folder)
    fresh.token = secret(folder, "admin")
    state = fresh.state()
    longer = {"type": "expire", "everySeconds": 0, "shardGroupDurationSeconds": 90 * DAY_S}
    bucket_id = state["buckets"]["market_data"][0]
    fresh.request("PATCH", f"/api/v2/buckets/{bucket_id}", retentionRules=[longer])
    fresh.request("PATCH", f"/api/v2/tasks/{state['tasks'][0][0]}", status="inactive")
    told = setup(path, "--tokens", folder).stdout
    assert "bucket market_data: there (kept for ever, shards of 90d)" in told
    assert "changed (it was inactive)" in told
    (service,) = (t for t in state["tokens"] if t["description"] == "market_data: service")
    fresh.request("PATCH", f"/api/v2/authorizations/{service['id']}", status="inactive")
    told = setup(path, "--tokens", folder, code=1).stdout
    assert "token 'market_data: service': missing (somebody has set it inactive" in told


async def test_the_service_s_token_writes_and_the_readers_one_only_reads(fresh, config, tmp_path):
    folder = tmp_path / "tokens"
    setup(config(fresh.url), "--tokens", folder)
    minute_ms = int(time.time() * 1000) // 180_000 * 180_000 - 180_000
    candle = Ohlcv("X", "A/B", minute_ms, 1.0, 2.0, 0.5, 1.5, 10.0, 15.0, 3, "stream", 0)
    tick = LastPrice("X", "A/B", minute_ms, 1.25)
    sink = InfluxSink(
        fresh.url, "trading", "market_data", secret(folder, "service"),
        ticks_bucket="market_data_ticks",
    )  # fmt: skip
    settled = await sink.write({"ohlcv_3m": [candle], "last_price": [tick]})
    await sink.close()
    assert (settled.accepted, settled.rejected) == (2, ())
    for name in ("service", "readers"):
        source = InfluxSource(fresh.url, secret(folder, name), "market_data", "market_data_ticks")
        for measurement, row in (("ohlcv_3m", candle), ("last_price", tick)):
            assert source.rows(measurement, "X", "A/B", minute_ms, minute_ms + 1) == [row]
        source.close()
    for bucket in ("market_data", "market_data_ticks"):
        assert write(fresh, bucket, secret(folder, "service")) == 204
        assert write(fresh, bucket, secret(folder, "readers")) == 403


def test_a_lost_token_is_told_and_made_anew_only_when_asked_for(fresh, config, tmp_path):
    path, folder = config(fresh.url), tmp_path / "tokens"
    setup(path, "--tokens", folder)
    service, lost = secret(folder, "service"), secret(folder, "readers")
    (folder / "readers.token").unlink()
    told = setup(path, "--tokens", folder, code=1).stdout
    assert "token 'market_data: readers': missing" in told
    assert "--new-token readers" in told
    assert read_status(fresh, lost) == 200
    told = setup(path, "--tokens", folder, "--new-token", "readers").stdout
    assert "token 'market_data: readers': changed (a new secret, the old one is void" in told
    assert "token 'market_data: service': there" in told
    assert secret(folder, "service") == service
    assert read_status(fresh, lost) == 401
    assert read_status(fresh, secret(folder, "readers")) == 200
    setup(path, "--tokens", folder)


def read_status(server, token):
    return call("GET", f"{server.url}/api/v2/buckets?name=market_data", token).status


def test_without_a_folder_secrets_are_printed_once_and_never_again(fresh, config):
    path = config(fresh.url)
    told = setup(path).stdout
    found = [line.split(": ")[1] for line in told.splitlines() if "told only now: " in line]
    assert len(set(found)) == 3
    admin, service, readers = found
    again = setup(path, INFLUXDB_ADMIN_TOKEN=admin)
    named = setup(path, INFLUXDB_TOKEN=admin)  # left out: store.token
    refused = setup(path, INFLUXDB_TOKEN=service, code=3)
    unknown = setup(path, code=3)
    for text in (again, named, refused, unknown):
        assert not [one for one in found if one in text.output]
    assert "an operator's token is needed" in refused.stderr
    assert "no operator's token" in unknown.stderr
    assert read_status(fresh, readers) == 200


def test_the_configuration_may_name_the_file_that_is_about_to_be_made(fresh, config, tmp_path):
    path = config(fresh.url, token_file="tokens/service.token")
    with pytest.raises(ConfigError):
        load_config(path)
    setup(path, "--tokens", tmp_path / "tokens")
    token = influx_store(path).token.get_secret_value()
    assert token == secret(tmp_path / "tokens", "service")
    assert write(fresh, "market_data", token) == 204


def influx_store(path, environ=os.environ):
    store = load_config(path, environ).store
    assert isinstance(store, InfluxStore)
    return store


class FullFolder(Folder):
    """One whose disk is full by the time that a secret is to be written."""

    @contextmanager
    def place(self, name):
        with super().place(name):
            yield self

    def put(self, secret):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_token_whose_secret_can_t_be_kept_is_taken_back(fresh, config, tmp_path):
    path, folder = config(fresh.url), tmp_path / "tokens"
    setup(path, "--tokens", folder)
    fresh.token = secret(folder, "admin")
    state, service = fresh.state(), secret(folder, "service")
    store = influx_store(path, {"INFLUXDB_TOKEN": "unused"})
    influx = InfluxSetup(
        store, admin=fresh.token, fallback=None, keeper=FullFolder(folder),
        new_tokens=["service"], dry_run=False,
    )  # fmt: skip
    with influx, pytest.raises(OSError, match="No space"):
        list(influx.run())
    assert fresh.state() == state
    assert secret(folder, "service") == service
    assert sorted(file.name for file in folder.iterdir()) == [
        "admin.token", "readers.token", "service.token",
    ]  # fmt: skip


def test_the_operator_s_token_and_password_may_be_given(fresh, config, tmp_path):
    file = tmp_path / "operator"
    file.write_text("a-token-of-my-own\n")
    done = setup(
        config(fresh.url), "--admin-token-file", file, "--tokens", tmp_path / "tokens",
        INFLUXDB_ADMIN_PASSWORD="a-password-of-my-own",
    )  # fmt: skip
    assert not (tmp_path / "tokens" / "admin.token").exists()
    assert "of-my-own" not in done.output
    fresh.token = "a-token-of-my-own"
    assert fresh.state()["orgs"] == ["trading"]
    assert "there" in setup(config(fresh.url), "--admin-token-file", file).stdout


def test_the_tasks_write_whole_minutes_and_again_the_same(fresh, config, tmp_path):
    folder = tmp_path / "tokens"
    setup(config(fresh.url), "--tokens", folder)
    fresh.token = secret(folder, "admin")
    now_ms = int(time.time() * 1000) // MINUTE_MS * MINUTE_MS
    recent_ms, late_ms = now_ms - 20 * MINUTE_MS, now_ms - 50 * 60 * MINUTE_MS
    lines, expected = [], {}
    for start_ms in (recent_ms, recent_ms + MINUTE_MS, late_ms):
        marks = [((start_ms // 7 + n * 37) % 100) + 0.25 for n in range(60)]
        lines += [
            f"mark_price,exchange=X,symbol=A/B:B mark_price={mark},index_price={mark + 1}"
            f" {start_ms + n * 1000}"
            for n, mark in enumerate(marks)
        ]
        lines += [f"last_price,exchange=X,symbol=A/B:B price={marks[3]} {start_ms + 59_999}"]
        expected[start_ms] = [
            marks[0], max(marks), min(marks), marks[-1], marks[-1] + 1, *[marks[3]] * 4,
        ]  # fmt: skip
    lines += [f"last_price,exchange=X,symbol=A/B:B price=1.0 {now_ms + MINUTE_MS}"]  # not over yet
    assert write(fresh, "market_data_ticks", secret(folder, "service"), "\n".join(lines)) == 204
    (often,) = fresh.get("/api/v2/tasks?name=market_data: ticks to minutes")["tasks"]
    (late,) = fresh.get("/api/v2/tasks?name=market_data: late ticks to minutes")["tasks"]
    run(fresh, often)
    assert minutes(fresh) == {time_ms: expected[time_ms] for time_ms in list(expected)[:2]}
    run(fresh, late)
    run(fresh, often)
    assert minutes(fresh) == expected


def run(server, task):
    path = f"/api/v2/tasks/{task['id']}/runs"
    number = server.request("POST", path)["id"]

    def over():
        found = {run["id"]: run["status"] for run in server.get(path)["runs"]}
        return found.get(number) in ("success", "failed") and found[number]

    assert eventually_sync(over, 30, "the end of a run") == "success"


def minutes(server):
    columns = {
        "mark_price_1m": ["open", "high", "low", "close", "index_price"],
        "last_price_1m": ["open", "high", "low", "close"],
    }
    found: dict[int, list[float]] = {}
    for measurement, names in columns.items():
        query = f"SELECT {', '.join(names)} FROM {measurement} WHERE symbol='A/B:B'"
        answer = call(
            "GET", f"{server.url}/query", server.token,
            fields={"db": "market_data", "epoch": "ms", "q": query},
        ).json()  # fmt: skip
        for row in answer["results"][0].get("series", [{"values": []}])[0]["values"]:
            found.setdefault(row[0], []).extend(row[1:])
    return found


def test_ticks_that_never_expire_need_no_tasks(fresh, config, tmp_path):
    told = setup(config(fresh.url, retention="forever"), "--tokens", tmp_path / "tokens").stdout
    assert "bucket market_data_ticks: created (kept for ever, shards of 30d)" in told
    assert "task" not in told


def test_what_is_missing_or_wrong_is_an_error_by_its_type(fresh, config, tmp_path):
    away = config(f"http://127.0.0.1:{free_port()}")
    assert "doesn't answer" in setup(away, code=3).stderr
    impossible = config(f"http://127.0.0.1:{free_port()}", retention="30m")
    refused = setup(impossible, code=2).stderr  # told before anything is sent
    assert "store.ticks.retention" in refused
    assert "1h" in refused
    path, folder = config(fresh.url), tmp_path / "tokens"
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    assert "file" in setup(path, "--tokens", in_the_way / "folder", code=2).stderr
    assert call("GET", f"{fresh.url}/api/v2/setup").json() == {"allowed": True}
    setup(path, "--tokens", folder)
    wrong = setup(path, INFLUXDB_ADMIN_TOKEN="a-wrong-token", code=3)
    assert "a-wrong-token" not in wrong.output
    assert "doesn't let this token" in wrong.stderr


def test_what_answers_there_but_is_no_influxdb_is_refused(config, something_else):
    assert "store.url" in setup(config(something_else), code=3).stderr


@pytest.fixture
def something_else(tmp_path):
    """An HTTP server that is something else."""
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            body = b"<html>hello</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_sqlite_gets_its_file_and_redis_is_asked_whether_it_is_there(tmp_path, redis_url):
    path = tmp_path / "config.yaml"
    document = {"exchanges": {"BYBIT": {"pairs": ["BTC/USDT"]}}, "redis": {"url": redis_url}}
    path.write_text(json.dumps(document))
    store = tmp_path / "var" / "market_data.db"
    assert "would be created" in setup(path, "--dry-run").stdout
    assert not store.parent.exists()
    told = setup(path).stdout
    assert f"store {store}: created (the service deletes ticks older than 7d)" in told
    assert ": there" in told
    assert f"store {store}: there" in setup(path).stdout
    document["redis"] = {"url": f"redis://:password-of-redis@127.0.0.1:{free_port()}/0"}
    path.write_text(json.dumps(document))
    absent = setup(path, code=1)
    assert "missing (it doesn't answer" in absent.stdout
    assert "password-of-redis" not in absent.output
    store.write_bytes(b"no database" * 100)
    for file in store.parent.glob("market_data.db-*"):
        os.unlink(file)
    assert "can't be used" in setup(path, code=3).stderr
