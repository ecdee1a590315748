"""Recorded traffic of real exchanges, where this machine has some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

RECORDED = Path(os.environ.get("MARKETDATA_RECORDED", "../shared/data")).absolute()
recorded = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="no recorded market data (MARKETDATA_RECORDED names its folder)"
)
