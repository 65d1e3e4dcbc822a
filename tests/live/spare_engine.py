"""A small engine that starts in milliseconds, fails as a plan says, and keeps a journal that outlives it.

    python -I -S tests/live/spare_engine.py PORT JOURNAL [PLAN]

Every start takes the next word of the plan (a file of words; its place is kept in PLAN.at), over and over: ``ok``;
``fail`` exits with 3; ``hang`` never listens; ``die`` kills itself in the middle of its third answer. It is healthy a
little after it listens and not any more once it was told to end; the journal has a line for every request: ``received``
with what state it came in (cold, serving, ending), and ``finished``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time

WARM_S = 0.05  # from listening to the first healthy answer
LINGER_S = 0.05  # from the request to end to the end: whoever still comes is written down
TOKEN_S = 0.005


class Engine:
    """The server."""

    def __init__(self, journal: str, plan: str):
        self.journal, self.plan = journal, plan
        self.healthy_from = time.monotonic() + WARM_S
        self.ending = False
        self.begun = 0

    def write(self, *words: object) -> None:
        """One line of the journal, whole even where several processes write."""
        line = " ".join(map(str, (os.getpid(), *words))) + "\n"
        file = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)

    @property
    def state(self) -> str:
        if self.ending:
            return "ending"
        return "serving" if time.monotonic() >= self.healthy_from else "cold"

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests one after another."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"POST"):
                    await self.complete(json.loads(body), writer)
                else:
                    is_healthy = head.startswith(b"GET /health") and self.state == "serving"
                    status = b"200 OK" if is_healthy else b"503 Service Unavailable"
                    writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def complete(self, body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        """A stream of events, tagged by the request's ``user``."""
        tag, count = str(body.get("user", "x")), int(str(body["max_tokens"]))
        self.write("received", tag, self.state)
        self.begun += 1
        dies = self.plan == "die" and self.begun == 3
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(count):
            await asyncio.sleep(TOKEN_S)
            if dies and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            text = json.dumps({"choices": [{"index": 0, "text": f" {tag}-{number}"}]})
            self.chunk(writer, f"data: {text}\n\n".encode())
            await writer.drain()
        self.chunk(writer, b"data: [DONE]\n\n")
        self.write("finished", tag)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    @staticmethod
    def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def next_word(plan: str) -> str:
    """The plan's word for this start."""
    if not plan:
        return "ok"
    with open(plan) as file:
        words = file.read().split()
    try:
        with open(f"{plan}.at") as file:
            at = int(file.read())
    except OSError:
        at = 0
    with open(f"{plan}.at", "w") as file:
        file.write(str(at + 1))
    return words[at % len(words)]


async def serve(port: int, journal: str, word: str) -> None:
    """Until SIGTERM."""
    engine = Engine(journal, word)
    engine.write("started", word)
    ended = asyncio.Event()
    server = await asyncio.start_server(engine.connection, "127.0.0.1", port)
    if port == 0:
        print(server.sockets[0].getsockname()[1], flush=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    engine.ending = True
    await asyncio.sleep(LINGER_S)
    engine.write("ended")
    os._exit(0)


def main() -> None:
    """As the plan says."""
    port, journal, plan = int(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""
    word = next_word(plan)
    if word == "fail":
        sys.exit(3)
    if word == "hang":
        time.sleep(3600)
    asyncio.run(serve(port, journal, word))


if __name__ == "__main__":
    main()
