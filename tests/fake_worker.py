"""A worker process without a model: it speaks the real frames and echoes the last message.

Run as a program by the tests. What it does is told by the model's file name and by the text of
the last user message, so that tests need no other channel:

model name     `broken*` refuses to load, `crash*` aborts while loading, `mute*` ends its output
               and stays, `cards*` has
               20 of 33 layers on graphics cards, `gate*` loads when the
               file of that name with `.open` behind it exists, and `gate-broken*` then refuses to,
               `stubborn*` ignores Stop, `vectors*` is an embedding model; n_ctx 1792 fails to load,
               whatever the model, as `crowded*` does beside any other of its folder, and
               `narrow*` with more than n_ctx 16384
`crash`        the process aborts                  `hang`   one word, then nothing ever
`fail:CODE`    Failed with that code at once       `gate:P` one word, then the rest once P exists
`late-fail`    one word, then Failed               `garbage`, `foreign`, `huge` break the protocol
`tool`         a tool call in fragments            `think`  reasoning, then an answer
`prefill:P`    progress, the answer once P exists  `report` the request itself, as JSON
`queue:P`      not begun with before P exists
`flood`        6 MB of text at once               `grow:N` takes N bytes of memory, and hangs
`count:N`      N words, one event a frame          `scores` two tokens with their logprobs
anything else: the words back. A completion is told its prompt, with a seed if it has one
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import msgspec

from llm_server.errors import ErrorInfo, InsufficientMemory
from llm_server.worker import frames
from llm_server.worker.config import Pooling
from llm_server.worker.messages import (
    Cancel,
    Cancelled,
    Cells,
    ChatRequest,
    CompletionRequest,
    Content,
    Detokenize,
    Embed,
    Embedded,
    Event,
    Failed,
    Finished,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Logprobs,
    Progress,
    Question,
    Reasoning,
    Render,
    Request,
    Rerank,
    Stop,
    Submit,
    Timings,
    Tokenize,
    TokenLogprob,
    TokenLogprobs,
    Told,
    ToolCall,
    Usage,
)

_output: BinaryIO
_writing = threading.Lock()
_folder = Path()  # where the model lies; loads and cancels are written down there
_stubborn = False
_hoard: list[bytes] = []

UNLUCKY_N_CTX = 1792
NARROW_N_CTX = 16_384


def send(*events: Event) -> None:
    with _writing:
        frames.write_frame(_output, frames.encode_events(list(events)))


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def note(name: str, line: str) -> None:
    with open(_folder / name, "a") as log:
        log.write(line + "\n")


def beside_another() -> bool:
    """Whether a worker that has loaded a model of this folder still runs."""
    path = _folder / "loads.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return any(Path("/proc", line.rpartition("pid=")[2]).exists() for line in lines)


def load(command: Load) -> None:
    global _folder, _stubborn
    path = command.model_path
    _folder = path.parent
    if path.name.startswith("gate-broken"):
        wait_for(path.with_name(path.name + ".open"))
    if "broken" in path.name or command.config.n_ctx == UNLUCKY_N_CTX:
        send(
            LoadFailed(
                ErrorInfo("It is broken.", 400, "invalid_request_error", "model_load_failed")
            )
        )
        sys.exit(0)
    if path.name.startswith("crowded") and beside_another():
        send(LoadFailed(InsufficientMemory("It does not fit beside another.").info))
        sys.exit(0)
    if path.name.startswith("crash"):
        os.abort()
    note("spans.log", f"begin {os.getpid()}")
    _stubborn = path.name.startswith("stubborn")
    send(LoadProgress(0.5))
    if path.name.startswith("mute"):
        _output.close()
        os.close(1)
        signal.pause()
    if path.name.startswith("gate"):
        wait_for(path.with_name(path.name + ".open"))
    n_ctx = command.config.n_ctx or 4096
    if path.name.startswith("narrow"):
        fitting = [n for n in (n_ctx, *command.smaller_n_ctx) if n <= NARROW_N_CTX]
        if not fitting:
            send(LoadFailed(InsufficientMemory("The context does not fit.").info))
            sys.exit(0)
        n_ctx = fitting[0]
    parallel = command.config.parallel or 4
    note("spans.log", f"end {os.getpid()}")
    note("loads.log", f"{path.name} n_ctx={n_ctx} pid={os.getpid()}")
    note("commands.log", msgspec.json.encode(command, enc_hook=str).decode())
    settled = {"n_ctx": n_ctx, "parallel": parallel}
    if path.name.startswith("cards"):
        settled |= {"n_gpu_layers": 20, "max_gpu_layers": 33}
    pooling: Pooling | None = "mean" if path.name.startswith("vectors") else None
    send(Loaded(**settled, description="fake", fingerprint="fp_fake", pooling=pooling))


def finished(submit: Submit, n: int, reason: str = "stop") -> Finished:
    request = submit.request
    assert isinstance(request, Request)
    n_prompt = len(request.messages) if isinstance(request, ChatRequest) else len(request.prompt)
    usage = Usage(n_prompt, n, 0)
    return Finished(submit.id, reason, usage, Timings(0.0, 1.0, 2.0))  # type: ignore[arg-type]


def special(submit: Submit, text: str) -> bool:  # noqa: C901 - one case a behaviour
    """The misbehaviours and the canned answers; False when the text is none of them."""
    id = submit.id
    match text.partition(":")[::2]:
        case "crash", _:
            os.abort()
        case "hang", _:
            send(Content(id, "one "))
        case "fail", code:
            send(Failed(id, ErrorInfo("As asked.", 400, "invalid_request_error", code)))
        case "late-fail", _:
            send(Content(id, "one "))
            send(Failed(id, ErrorInfo("As asked.", 500, "server_error", "internal_error")))
        case "grow", n:
            _hoard.append(b"x" * int(n))
        case "garbage", _:
            os.write(_output.fileno(), frames.pack(b"\xff\xff"))
        case "foreign", _:
            send(Content(id + 1000, "not yours"))
        case "huge", _:
            os.write(_output.fileno(), struct.pack("<I", 1 << 30))
        case "flood", _:
            for _ in range(64):
                send(Content(id, "x" * 100_000))
        case "prefill", path:
            send(Progress(id, 100, 42, 10))
            wait_for(Path(path))
            send(Content(id, "done"), finished(submit, 1))
        case "queue", path:
            wait_for(Path(path))
            send(Content(id, "done"), finished(submit, 1))
        case "gate", path:
            send(Content(id, "one "))
            wait_for(Path(path))
            send(Content(id, "two"), finished(submit, 2))
        case "tool", _:
            send(ToolCall(id, 0, call_id="call_1", name="weather"))
            send(ToolCall(id, 0, '{"city":'), ToolCall(id, 0, '"Oslo"}'))
            send(ToolCall(id, 1, "{}", call_id="call_2", name="time"))
            send(finished(submit, 9, "tool_calls"))
        case "think", _:
            send(Reasoning(id, "Let me "), Reasoning(id, "see."))
            send(Content(id, "Yes."), finished(submit, 5))
        case "report", _:
            send(Content(id, msgspec.json.encode(submit.request).decode()), finished(submit, 1))
        case "scores", _:
            score(submit)
        case "count", n:
            for i in range(int(n)):
                send(Content(id, f"{i} "))
            send(finished(submit, int(n), "length"))
        case _:
            return False
    return True


def score(submit: Submit) -> None:
    """Two tokens, with a prompt of one before them if it is to be echoed."""
    id, request = submit.id, submit.request
    assert isinstance(request, Request)
    if isinstance(request, CompletionRequest) and request.echo:
        send(Logprobs(id, [], "ä".encode()), Content(id, "ä"))
    yes, no = TokenLogprob(b"yes", -0.25), TokenLogprob(b"\xff", -1.5)
    n_top = request.sampling.top_logprobs or 0
    send(Logprobs(id, [TokenLogprobs(yes, [yes, no][:n_top], 3)]), Content(id, "yes"))
    send(Logprobs(id, [TokenLogprobs(no, [yes, no][:n_top], 1)]), finished(submit, 2))


def tell(id: int, question: Question) -> Told:
    """A token is a character."""
    match question:
        case Tokenize(text=text, with_pieces=with_pieces):
            pieces = [c.encode()[:1] for c in text] if with_pieces else []
            return Told(id, tokens=[ord(c) for c in text], pieces=pieces)
        case Detokenize(tokens=tokens):
            return Told(id, "".join(chr(t) if t < 0xD800 else "?" for t in tokens))
        case Render(request=request):
            text = "|".join(message.content or "" for message in request.messages)
            return Told(id, text, n_tokens=len(text))


def embed(id: int, request: Embed) -> None:
    """A vector begins with how long the text is, then zeros; `crash` and `hang` as above."""
    if "crash" in request.inputs:
        os.abort()
    for text in request.inputs:
        values = [float(len(text)), *[0.0] * ((request.dimensions or 4) - 1)]
        if text == "hang":
            return
        send(Embedded(id, 1, struct.pack(f"<{len(values)}f", *values)))
    usage = Usage(sum(map(len, request.inputs)), 0, 0)
    send(Finished(id, "stop", usage, Timings(0.0, 1.0, 0.0)))


def rerank(id: int, request: Rerank) -> None:
    """A document's score is how long it is; `crash` and `hang` as above."""
    if "crash" in request.documents:
        os.abort()
    for document in request.documents:
        if document == "hang":
            return
        send(Embedded(id, 1, struct.pack("<f", len(document))))
    n_tokens = sum(len(request.query) + len(document) for document in request.documents)
    send(Finished(id, "stop", Usage(n_tokens, 0, 0), Timings(0.0, 1.0, 0.0)))


def answer(submit: Submit) -> None:
    """Answer, or fail: a thread that dies without a word would look like a hang of the server."""
    try:
        answer_or_raise(submit)
    except Exception as error:
        info = ErrorInfo(repr(error)[:300], 500, "server_error", "fake_worker_failed")
        send(Failed(submit.id, info))


def answer_or_raise(submit: Submit) -> None:
    request = submit.request
    if isinstance(request, Embed):
        embed(submit.id, request)
        return
    if isinstance(request, Rerank):
        rerank(submit.id, request)
        return
    if isinstance(request, Question):
        send(tell(submit.id, request))
        return
    if isinstance(request, ChatRequest):
        text = request.messages[-1].content or ""
    else:
        text = request.prompt if isinstance(request.prompt, str) else str(request.prompt)
    if submit.request.sampling.max_tokens == 0:
        send(Progress(submit.id, 7, 7, 0), finished(submit, 0, "length"))
    elif not special(submit, text):
        words = [word + " " for word in text.split(" ")]
        if request.sampling.seed is not None:
            words.append(f"#{request.sampling.seed}")
        send(Progress(submit.id, len(words), len(words), 0))
        send(*(Content(submit.id, word) for word in words), finished(submit, len(words)))
        send(Cells(idle=len(words)))


def main() -> None:
    global _output
    _output = os.fdopen(os.dup(1), "wb")
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    reading = os.fdopen(os.dup(0), "rb")
    while (body := frames.read_frame(reading)) is not None:
        match frames.decode_command(body):
            case Load() as command:
                load(command)
            case Submit() as submit:
                threading.Thread(target=answer, args=(submit,), daemon=True).start()
            case Cancel(id=id):
                note("cancels.log", str(id))
                send(Cancelled(id, Usage(3, 1, 0), Timings(0.0, 1.0, 2.0)))
            case Stop() if not _stubborn:
                break
    os._exit(0)


if __name__ == "__main__":
    main()
