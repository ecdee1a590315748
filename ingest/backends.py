"""cryptofeed callbacks: they put events into the inbox and do nothing else.

Whatever happens behind the inbox can then neither slow a connection down nor break it.
"""

from __future__ import annotations

from ingest.inbox import Inbox
from ingest.model import Event


class InboxBackend:
    """The callback of every channel.

    `receipt_timestamp` is cryptofeed's: seconds of our clock, as a float.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def __call__(self, event: Event, receipt_timestamp: float) -> None:
        self._inbox.put(event, round(receipt_timestamp * 1000))
