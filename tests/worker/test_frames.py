"""Frames: cut and joined anywhere, bounded, and honest about how a stream ended."""

from __future__ import annotations

import io
import os
import struct
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_server.errors import WorkerCrashed
from llm_server.worker import frames
from llm_server.worker.config import CacheConfig
from llm_server.worker.messages import (
    Cancel,
    ChatRequest,
    Content,
    Event,
    Failed,
    Finished,
    Load,
    Loaded,
    Logprobs,
    Message,
    Reasoning,
    Stop,
    Submit,
    Timings,
    TokenLogprob,
    TokenLogprobs,
    Told,
    ToolCall,
    Usage,
)


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), max_size=40))
def test_the_splitter_gives_the_same_frames_however_the_stream_is_cut(
    bodies: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(frames.pack(body) for body in bodies)
    splitter = frames.FrameSplitter()
    got: list[bytes] = []
    position = 0
    for cut in [*cuts, len(stream)]:
        got += splitter.feed(stream[position : position + cut])
        position += cut
    assert got == bodies


def test_a_blocking_reader_and_writer_agree_over_a_pipe() -> None:
    read_fd, write_fd = os.pipe()
    bodies = [b"", b"x" * 300_000, b"end"]

    def write() -> None:
        # Unbuffered, so that a short write has to be continued.
        with open(write_fd, "wb", buffering=0) as file:
            for body in bodies:
                frames.write_frame(file, body)

    writer = threading.Thread(target=write)
    writer.start()
    with open(read_fd, "rb", buffering=0) as file:
        assert [frames.read_frame(file) for _ in bodies] == bodies
        assert frames.read_frame(file) is None
    writer.join()


@pytest.mark.parametrize("length", [1, 3, 5, 6])
def test_the_end_inside_a_frame_is_not_a_clean_end(length: int) -> None:
    with pytest.raises(frames.FrameTruncated):
        frames.read_frame(io.BytesIO(frames.pack(b"abc")[:length]))


def test_oversize_is_refused_before_the_body_is_read() -> None:
    announced = struct.pack("<I", frames.MAX_FRAME + 1)
    with pytest.raises(frames.FrameTooLong):
        frames.read_frame(io.BytesIO(announced))
    with pytest.raises(frames.FrameTooLong):
        frames.FrameSplitter().feed(announced)
    with pytest.raises(frames.FrameTooLong):
        frames.write_frame(io.BytesIO(), b"x" * (frames.MAX_FRAME + 1))
    assert len(frames.pack(b"x" * frames.MAX_FRAME)) == frames.MAX_FRAME + 4


def test_every_command_and_event_survives_the_round_trip() -> None:
    for command in (
        Load(
            Path("/m/a.gguf"),
            # No name of a file has to be text.
            cache=CacheConfig(Path(os.fsdecode(b"/caf\xe9")), 1),
            adapter_paths=(Path("b.gguf"), Path("c.gguf")),
        ),
        Submit(id=1, request=ChatRequest(messages=[Message(role="user", content="é")])),
        Cancel(id=1),
        Stop(),
    ):
        assert frames.decode_command(frames.encode_command(command)) == command
    events: list[Event] = [
        Loaded(n_ctx=1, parallel=3, description="d"),
        Content(id=1, text="é"),
        ToolCall(id=1, index=0, arguments="{", call_id="c", name="f"),
        Finished(id=1, reason="stop", usage=Usage(1, 2, 0), timings=Timings(0.5, 1.5, 2.5)),
        Failed(id=2, error=WorkerCrashed("gone").info),
    ]
    assert frames.decode_events(frames.encode_events(events)) == events


@pytest.mark.parametrize("sizes", [[1], [1, 2, 3], [3, 3, 3, 3, 3], [7, 7], [1, 7, 7, 1]])
def test_events_take_as_many_frames_as_they_need(sizes: list[int]) -> None:
    events: list[Event] = [Content(i, "x" * (n << 20)) for i, n in enumerate(sizes)]
    bodies = list(frames.event_frames(events))
    assert all(len(body) <= frames.MAX_FRAME for body in bodies)
    assert len(bodies) == 1 or sum(sizes) >= 8
    assert [event for body in bodies for event in frames.decode_events(body)] == events


LONG = "é" * (9 << 20)


@pytest.mark.parametrize(
    "event",
    [Content(1, LONG), Reasoning(1, LONG), ToolCall(1, 2, LONG, call_id="c", name="f")],
)
def test_a_text_that_no_frame_holds_comes_in_parts(event: Content | Reasoning | ToolCall) -> None:
    bodies = list(frames.event_frames([Content(1, "before"), event, Content(1, "behind")]))
    assert len(bodies) > 2 and all(len(body) <= frames.MAX_FRAME for body in bodies)
    before, *parts, behind = [e for body in bodies for e in frames.decode_events(body)]
    assert (before, behind) == (Content(1, "before"), Content(1, "behind"))
    assert {type(part) for part in parts} == {type(event)}
    if isinstance(event, ToolCall):
        calls = [part for part in parts if isinstance(part, ToolCall)]
        assert "".join(call.arguments for call in calls) == LONG
        assert [(c.index, c.call_id, c.name) for c in calls[:2]] == [(2, "c", "f"), (2, None, None)]
    else:
        texts = [part.text for part in parts if isinstance(part, Content | Reasoning)]
        assert "".join(texts) == LONG


def test_log_probabilities_that_no_frame_holds_come_in_parts() -> None:
    token = TokenLogprobs(TokenLogprob(b"x" * 1000, -1.0), [], 1000)
    whole = Logprobs(1, [token] * 10_000, b"opening")
    bodies = list(frames.event_frames([whole]))
    assert len(bodies) > 1 and all(len(body) <= frames.MAX_FRAME for body in bodies)
    parts = [event for body in bodies for event in frames.decode_events(body)]
    told = [part for part in parts if isinstance(part, Logprobs)]
    assert [part.opening for part in told] == [b"opening", *[None] * (len(parts) - 1)]
    assert [token for part in told for token in part.tokens] == whole.tokens


def test_another_event_that_no_frame_holds_is_an_error() -> None:
    with pytest.raises(frames.FrameTooLong):
        list(frames.event_frames([Told(1, LONG)]))


@pytest.mark.parametrize("body", [b"", b"\xff", b"\x90", msgspec.msgpack.encode({"type": "Evil"})])
def test_anything_else_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        frames.decode_command(body)
