"""The agent's client, against agents that do not keep to the protocol. What a real one does: tests/guest/test_agent."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from vmm.agent import client
from vmm.agent.client import DISCARD, Agent, AgentError, AgentRefused, AgentTimeout
from vmm.agent.wire import FRAME_MAX, Frame

Serve = Callable[[socket.socket], None]
StartAgent = Callable[[Serve], Agent]


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("<II", len(payload), kind) + payload


def says(*frames: bytes, answer: bytes = b"OK 1073741824\n") -> Serve:
    """An agent that says *frames*, whatever it is asked."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 17)
        connection.sendall(b"".join((answer, *frames)))

    return serve


@pytest.fixture
def start(tmp_path: os.PathLike[str]) -> Iterator[StartAgent]:
    """Starts an agent that treats every connection alike, until the test ends."""
    path = os.path.join(tmp_path, "vsock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    threads: list[threading.Thread] = []

    def begin(serve: Serve) -> Agent:
        def run() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                with connection:
                    try:
                        serve(connection)
                    except OSError:
                        continue

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return Agent(path, patience_s=0.3)

    yield begin
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(5)


def test_a_right_answer_to_hello(start: StartAgent) -> None:
    start(says(frame(Frame.OK, b"\1\0\0\0nonce"))).hello(b"nonce")


@pytest.mark.parametrize("payload", [b"", b"\1\0\0\0nonse", b"\2\0\0\0nonce", b"\1\0\0\0nonce!"])
def test_another_nonce_or_version_is_an_error(start: StartAgent, payload: bytes) -> None:
    with pytest.raises(AgentError, match="not version 1"):
        start(says(frame(Frame.OK, payload))).hello(b"nonce")


def test_a_frame_that_is_too_large_is_not_read(start: StartAgent) -> None:
    with pytest.raises(AgentError, match="4294967295 bytes"):
        start(says(struct.pack("<II", 0xFFFF_FFFF, Frame.OK))).hello()


@pytest.mark.parametrize("kind", [0, Frame.DATA, Frame.EXIT, 0xFFFF_FFFF])
def test_a_frame_that_does_not_belong_there_is_an_error(start: StartAgent, kind: int) -> None:
    with pytest.raises(AgentError, match=f"type {kind}"):
        start(says(frame(kind))).sync()


def test_an_agent_that_goes_away_is_an_error(start: StartAgent) -> None:
    with pytest.raises(AgentError, match="gone away"):
        start(says(b"\0")).run(["true"])


def test_an_agent_that_says_nothing_is_waited_for_no_longer_than_wanted(start: StartAgent) -> None:
    def silent(connection: socket.socket) -> None:
        connection.sendall(b"OK 1\n")
        while connection.recv(1000):
            pass

    agent, began = start(silent), time.monotonic()
    with pytest.raises(AgentTimeout):
        agent.run(["true"], timeout_s=0.2)
    assert time.monotonic() - began < 5


def test_an_agent_that_takes_nothing_is_waited_for_no_longer_than_wanted(start: StartAgent) -> None:
    done = threading.Event()

    def deaf(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"OK 1\n" + frame(Frame.OK))
        done.wait(10)

    with pytest.raises(AgentTimeout):
        start(deaf).put(io.BytesIO(bytes(1 << 22)), "/file", timeout_s=0.3)
    done.set()


def test_nobody_at_the_port_is_told_with_the_way_to_get_an_agent(start: StartAgent) -> None:
    with pytest.raises(AgentTimeout, match=r"no agent answers(.|\n)*docs/agent.md"):
        start(lambda _: None).hello()


@pytest.mark.parametrize("before", [0, 1], ids=["alone", "behind others"])
def test_a_vm_that_does_not_look_at_its_clients_is_waited_for_no_longer_than_wanted(
    tmp_path: os.PathLike[str], before: int
) -> None:
    path = os.path.join(tmp_path, "vsock")
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as others:
        listener.bind(path)
        listener.listen(0)  # one may wait
        for _ in range(before):
            others.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        with pytest.raises(AgentTimeout, match="no agent answers"):
            Agent(path, patience_s=0.2).hello()


def test_no_socket_is_told(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(AgentError, match="No such file"):
        Agent(os.path.join(tmp_path, "none")).hello()


def test_something_else_at_the_socket_is_told(start: StartAgent) -> None:
    with pytest.raises(AgentError, match="not the socket of pyvmm"):
        start(says(answer=b"SSH-2.0-OpenSSH\r\n")).hello()


def test_output_without_end_is_not_kept(start: StartAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "OUTPUT_MAX", 3 << 20)
    with pytest.raises(AgentError, match="more than 3 MiB"):
        start(says(*[frame(Frame.STDOUT, bytes(FRAME_MAX))] * 100)).run(["yes"])


def test_output_nobody_wants_is_not_kept_and_not_counted(start: StartAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "OUTPUT_MAX", 1)
    output = [frame(Frame.STDOUT, bytes(FRAME_MAX))] * 10
    done = start(says(*output, frame(Frame.EXIT, bytes(4)))).run(["yes"], stdout=DISCARD)
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_file_without_end_is_not_taken(start: StartAgent) -> None:
    target = io.BytesIO()
    with pytest.raises(AgentError, match="more than 100000 bytes"):
        start(says(*[frame(Frame.DATA, bytes(FRAME_MAX))] * 100)).get("/file", target, size_max=100_000)
    assert len(target.getvalue()) == 100_000


def test_a_file_that_stops_halfway_is_an_error(start: StartAgent) -> None:
    with pytest.raises(AgentError, match="gone away"):
        start(says(frame(Frame.DATA, b"half"))).get("/file", io.BytesIO())


@pytest.mark.parametrize(("payload", "reason"), [(b"\2\0\0\0", "No such file"), (b"", "Success"), (b"\xff" * 8, "Unk")])
def test_a_refusal_is_told_with_its_reason(start: StartAgent, payload: bytes, reason: str) -> None:
    with pytest.raises(AgentRefused, match=reason):
        start(says(frame(Frame.ERROR, payload))).run(["no-such"])


@pytest.mark.parametrize(("status", "code"), [(0, 0), (0x300, 3), (0xFF00, 255), (9, -9), (0x8B, -11)])
def test_the_wait_status_is_taken_apart(start: StartAgent, status: int, code: int) -> None:
    done = start(says(frame(Frame.EXIT, status.to_bytes(4, "little")))).run(["true"])
    assert done.returncode == code


def test_a_command_without_words_or_with_a_nul_is_a_mistake(tmp_path: os.PathLike[str]) -> None:
    agent = Agent(os.path.join(tmp_path, "none"))
    for argv in ([], ["a\0b"]):
        with pytest.raises(ValueError, match="NUL"):
            agent.run(argv)


def test_a_command_that_is_too_long_is_refused_like_by_the_kernel(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(AgentRefused, match="too long"):
        Agent(os.path.join(tmp_path, "none")).run(["x" * FRAME_MAX])


def repeats(said: list[int], *, requests: int) -> Serve:
    """An agent that repeats nonces, *requests* of them on a connection; it notes in *said* how many it has."""

    def serve(connection: socket.socket) -> None:
        said.append(0)
        connection.recv(len("CONNECT 1023\n"))
        connection.sendall(b"OK 1\n")
        while said[-1] < requests and (request := connection.recv(1000)):
            connection.sendall(frame(Frame.OK, b"\1\0\0\0" + request[8:]))
            said[-1] += 1

    return serve


def test_a_connection_serves_the_next_request_too_until_it_is_closed(start: StartAgent) -> None:
    said: list[int] = []
    agent = start(repeats(said, requests=100))
    for _ in range(3):
        agent.hello()
    agent.close()
    agent.hello()
    agent.close()
    assert said == [3, 1]


def test_a_connection_that_the_agent_has_ended_is_made_anew(start: StartAgent) -> None:
    said: list[int] = []
    agent = start(repeats(said, requests=1))
    for _ in range(3):
        agent.hello()
        time.sleep(0.05)
    assert said == [1, 1, 1]


def test_a_connection_is_not_used_again_after_a_failure(start: StartAgent) -> None:
    said: list[int] = []
    agent = start(repeats(said, requests=100))
    agent.hello()
    with pytest.raises(AgentError, match="type 32"):
        agent.run(["true"])
    agent.hello()
    agent.close()
    assert said == [2, 1]
