"""A service that is killed loses nothing: `kill -9`, SIGTERM, SIGINT, no memory left.

MARKETDATA_KILLS says how often it is killed on each store; left out, twice.
"""

import os
import random

from tests.scenarios import measured
from tests.soak.kill import influx_store, killed, sqlite_store

ROUNDS = int(os.environ.get("MARKETDATA_KILLS", "2"))


def some(endings):
    return [endings[n % len(endings)] for n in range(ROUNDS)]


async def test_killed_at_random_moments_the_store_is_whole_and_true_on_sqlite(tmp_path):
    seed = random.randrange(2**32)
    measured("seed", seed)
    figures = await killed(
        tmp_path, sqlite_store(tmp_path), some(("kill", "term", "kill", "int")), seed
    )
    measured("killed on sqlite", figures)


async def test_killed_at_random_moments_the_store_is_whole_and_true_on_influxdb(tmp_path, influx):
    seed = random.randrange(2**32)
    measured("seed", seed)
    store = influx_store(influx.url, influx.org, influx.bucket, influx.token)
    endings = some(("memory", "kill", "int", "kernel", "term"))
    figures = await killed(tmp_path, store, endings, seed)
    measured("killed on influxdb", figures)
