import pytest

from ingest.capture import open_captures
from marketdata.errors import ConfigError


def write(folder, name, *lines):
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_frames_of_all_connections_come_in_the_order_of_their_arrival(tmp_path):
    write(tmp_path, "X.0", 'https://x/info -> 1.5: {"symbols": []}', "configuration: {}")
    write(tmp_path, "X.ws.1.0", "wss://x/a <-> 1.0", "1.1: one", "1.4: four")
    write(tmp_path, "X.ws.1.1", "1.6: 币安: six", "")
    write(
        tmp_path, "X.ws.2.0", "wss://x/b <-> 1.2", 'wss://x/b <- 1.25: {"op": "ping"}', "1.3: three"
    )
    (capture,) = open_captures(tmp_path, ["X", "Y"])
    frames = [(f.received_ms, f.connection, f.text) for f in capture.frames()]
    assert frames == [
        (1_000, "X.ws.1", None),
        (1_100, "X.ws.1", "one"),
        (1_200, "X.ws.2", None),
        (1_300, "X.ws.2", "three"),
        (1_400, "X.ws.1", "four"),
        (1_600, "X.ws.1", "币安: six"),
    ]
    assert {f.url for f in capture.frames() if f.connection == "X.ws.1"} == {"wss://x/a"}
    assert capture.answers == {"https://x/info": {"symbols": []}}


def test_the_tenth_file_of_a_connection_comes_after_the_ninth(tmp_path):
    for part in range(12):
        write(tmp_path, f"X.ws.1.{part}", f"{part}.0: {part}")
    (capture,) = open_captures(tmp_path, ["X"])
    assert [f.text for f in capture.frames()] == [str(n) for n in range(12)]


def test_a_folder_without_frames_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no frames"):
        open_captures(tmp_path, ["X"])
