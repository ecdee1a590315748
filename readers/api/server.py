"""Binds the API and serves until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import socket
import sys

import structlog
import uvicorn

from marketdata.errors import StoreUnavailable
from marketdata.settings import Settings
from readers.api.app import create_app
from readers.client import MarketData

log = structlog.get_logger()

_BACKLOG = 128
_GRACE_S = 5
