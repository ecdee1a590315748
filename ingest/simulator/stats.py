"""Counters of what an exchange's callers did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from ingest.simulator.limits import SlidingWindow


def _last_minute() -> SlidingWindow:
    return SlidingWindow(1 << 30, 60_000)


@dataclass(slots=True)
class Stats:
    """What tests and the demo want to know about an exchange's callers."""

    handshakes: int = 0
    handshakes_refused: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    rest_requests: int = 0
    rest_refused: int = 0
    slow_clients: int = 0
    most_handshakes_in_a_minute: int = 0
    most_rest_in_a_minute: int = 0
    _recent_handshakes: SlidingWindow = field(default_factory=_last_minute)
    _recent_requests: SlidingWindow = field(default_factory=_last_minute)

    def handshake(self, now_ms: int) -> None:
        """Count one, by the simulator's clock."""
        self.handshakes += 1
        self._recent_handshakes.admit(now_ms)
        used = self._recent_handshakes.used(now_ms)
        self.most_handshakes_in_a_minute = max(self.most_handshakes_in_a_minute, used)

    def request(self, now_ms: int) -> None:
        """Count one of REST."""
        self.rest_requests += 1
        self._recent_requests.admit(now_ms)
        used = self._recent_requests.used(now_ms)
        self.most_rest_in_a_minute = max(self.most_rest_in_a_minute, used)

    def as_json(self, now_ms: int) -> dict[str, int]:
        counts = {name: n for name, n in asdict(self).items() if not name.startswith("_")}
        return {
            **counts,
            "handshakes_last_minute": self._recent_handshakes.used(now_ms),
            "rest_last_minute": self._recent_requests.used(now_ms),
        }
