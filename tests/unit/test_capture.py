import pytest

from ingest.capture import open_captures
from ingest.capture_files import member, segment_name
from marketdata.errors import ConfigError


def write(folder, name, *lines):
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def segment(folder, stem, start_s, *members):
    packed = [member("".join(f"{line}\n" for line in lines).encode()) for lines in members]
    path = folder / segment_name(stem, start_s * 1000)
    path.write_bytes(b"".join(packed))
    return path, packed


def texts(capture, **how):
    return [frame.text for frame in capture.frames(**how) if frame.text is not None]


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
    assert [(a.received_ms, a.url, a.value) for a in capture.answers()] == [
        (1_500, "https://x/info", {"symbols": []})
    ]
    assert capture.damaged == 0


def test_the_tenth_file_of_a_connection_comes_after_the_ninth(tmp_path):
    for part in range(12):
        write(tmp_path, f"X.ws.1.{part}", f"{part}.0: {part}")
    (capture,) = open_captures(tmp_path, ["X"])
    assert texts(capture) == [str(n) for n in range(12)]


def test_segments_follow_plain_files_and_each_other_by_their_times(tmp_path):
    segment(tmp_path, "X.ws.1", 900, ["900.5: third"], ["901: fourth"])
    segment(tmp_path, "X.ws.1", 600, ["600: second"])
    write(tmp_path, "X.ws.1.0", "300.0: first")
    write(tmp_path, "notes.txt", "not of the capture")
    (capture,) = open_captures(tmp_path, ["X"])
    assert texts(capture) == ["first", "second", "third", "fourth"]


def test_what_is_told_of_a_connection_comes_with_its_frames(tmp_path):
    segment(
        tmp_path, "X.ws.1", 1,
        ["ws://x <-> 1.0", "ws://x <-> 1.1 opened", "1.2: a", " <-> 1.3 lost: 7"],
        ["ws://x <-> 1.4 closed: no data: at all"],
    )  # fmt: skip
    (capture,) = open_captures(tmp_path, ["X"])
    told = [(f.received_ms, f.told, f.url) for f in capture.frames() if f.text is None]
    assert told == [
        (1_000, "", "ws://x"),
        (1_100, "opened", "ws://x"),
        (1_300, "lost: 7", "ws://x"),
        (1_400, "closed: no data: at all", "ws://x"),
    ]
    assert capture.damaged == 0


def test_an_answer_that_every_segment_repeats_is_one_answer(tmp_path):
    segment(tmp_path, "X.ws.1", 1, ["1.0: a"])
    for start_s in (1, 2, 3):
        segment(tmp_path, "X", start_s, ["https://x/markets -> 0.5: [1]"])
    (capture,) = open_captures(tmp_path, ["X"])
    assert [answer.value for answer in capture.answers()] == [[1]]


def test_bad_lines_cost_only_themselves_and_are_counted(tmp_path):
    (tmp_path / "X.0").write_bytes(
        b'https://x/a -> 1.0: {"cut\nhttps://x/b -> 1.0: [2]\nhttps://x/c -> 1.0: [\xff]\n'
    )
    (tmp_path / "X.ws.1.0").write_bytes(
        b"1.0: a\nnoise\n1.5.7: noise\n1.1: \xff\n\n1.2: b\nwss://x <- 1.3: asked\n1.4: cut o"
    )
    (capture,) = open_captures(tmp_path, ["X"])
    assert texts(capture) == ["a", "b"]
    assert capture.damaged == 4
    assert [answer.value for answer in capture.answers()] == [[2]]
    assert capture.damaged == 6


@pytest.mark.parametrize("left", range(1, 20, 6))
def test_a_segment_that_is_cut_off_is_read_up_to_the_cut(tmp_path, left):
    lines = [f"{number}.0: {number * 7919 % 1000:03}" for number in range(2_000)]
    path, packed = segment(tmp_path, "X.ws.1", 1, lines[:1_000], lines[1_000:])
    path.write_bytes(path.read_bytes()[: len(packed[0]) + len(packed[1]) * left // 20])
    (capture,) = open_captures(tmp_path, ["X"])
    found = texts(capture)
    assert found == [line.partition(": ")[2] for line in lines[: len(found)]]
    assert 1_000 <= len(found) < 2_000
    assert left < 7 or len(found) > 1_100


def test_spoilt_bytes_cost_the_member_that_they_are_in(tmp_path):
    members = [[f"{n}.{m:03}: {n * m * 7919}" for m in range(500)] for n in range(1, 5)]
    path, packed = segment(tmp_path, "X.ws.1", 1, *members)
    data = bytearray(path.read_bytes())
    data[len(packed[0]) + 900] ^= 0x10
    data[len(packed[0]) + len(packed[1]) + 2] ^= 0xFF
    path.write_bytes(data)
    (capture,) = open_captures(tmp_path, ["X"])
    whole = [line.partition(": ")[2] for some in (members[0], members[3]) for line in some]
    assert texts(capture) == whole
    assert capture.damaged >= 1


def since(folder, since_s, *, merging=True):
    (capture,) = open_captures(folder, ["X"])
    return [(frame.text, frame.url) for frame in capture.frames(since_s * 1000, merging=merging)]


def test_a_window_begins_with_the_segment_in_which_its_connection_was_opened(tmp_path):
    segment(tmp_path, "X.ws.1", 100, ["ws://x <-> 100.0", "101: old"])
    segment(
        tmp_path,
        "X.ws.1",
        200,
        ["ws://x <-> 200.0 closed: cut", "ws://x <-> 201.0", "202: snapshot"],
    )
    segment(tmp_path, "X.ws.1", 300, ["ws://x <-> 300.0 continued: 201.0", "301: delta"])
    segment(tmp_path, "X.ws.1", 400, ["ws://x <-> 400.0 continued: 201.0", "401: newer"])
    found = since(tmp_path, 401)
    assert [text for text, _ in found if text is not None] == ["snapshot", "delta", "newer"]
    assert since(tmp_path, 401, merging=False) == [(None, "ws://x"), ("newer", "ws://x")]
    assert ("old", "ws://x") in since(tmp_path, 150)


def test_a_folder_without_frames_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no frames"):
        open_captures(tmp_path, ["X"])
