"""Servers that are killed and started again under the service; longer in `tests.soak.chaos`."""

import random

from tests.scenarios import measured
from tests.soak.chaos import chaos
from tests.soak.kill import PAIRS

SECONDS = 6.0
SPEED = 20.0


async def test_servers_killed_at_random_leave_the_store_whole_and_true(
    tmp_path, influx_server, redis_server
):
    seed = random.randrange(2**32)
    measured("seed", seed)
    done = await chaos(
        tmp_path, influx_server, redis_server, PAIRS, seconds=SECONDS, speed=SPEED, seed=seed
    )
    measured("killed", done)
    assert done.rejected == 0
    assert {what for what in done.dropped if not what.startswith("inbox.")} == set()
