"""Every upstream's behaviour against every client's, in raw bytes: no 500 of the proxy's own, no hang, no request lost,
doubled or mixed up with another, and no key in anything that the proxy says."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

import httpx
import pytest

from inferencegym_jax.live.proxy.sniffing import generates
from tests.live.conftest import Fixed, controlling, proxy, status
from tests.live.raw_upstream import BEHAVIOURS, EXPECTED, SECRET, TOKENS, WHOLE, RawUpstream, raw_upstream

LIMIT_S = 60.0  # of one exchange
SHORT = {"first_byte_timeout_s": 2.0, "stall_timeout_s": 2.0}
CLIENTS = ("reads", "slow", "chunks", "twice", "leaves", "half")


@dataclass
class Answer:
    """A raw answer, taken apart."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    complete: bool = False


def parse(raw: bytes) -> tuple[Answer, bytes]:
    """The first answer in ``raw``, and what follows it."""
    top, found, rest = raw.partition(b"\r\n\r\n")
    if not found:
        return Answer(), raw
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer = Answer(int(first.split(" ")[1]), headers)
    if answer.status in (204, 304):
        answer.complete = True
    elif "content-length" in headers:
        length = int(headers["content-length"])
        answer.body, rest = rest[:length], rest[length:]
        answer.complete = len(answer.body) == length
    elif headers.get("transfer-encoding") == "chunked":
        while match := re.match(rb"([0-9a-fA-F]+)\r\n", rest):
            size = int(match[1], 16)
            chunk, rest = rest[match.end() :][:size], rest[match.end() + size + 2 :]
            answer.body += chunk
            if size == 0:
                answer.complete = True
                break
    return answer, rest


def message(behaviour: str, tag: str, *, chunks: bool = False, close: bool = True) -> bytes:
    body = json.dumps({"model": "m", "prompt": [7] * 5, "max_tokens": 3, "stream": True, "user": tag}).encode()
    lines = [f"POST /{behaviour}/v1/completions HTTP/1.1", "host: proxy", f"authorization: Bearer {SECRET}"]
    lines += ["content-type: application/json", "connection: close" if close else "connection: keep-alive"]
    if chunks:
        lines.append("transfer-encoding: chunked")
        body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(x), x) for x in (body[:9], body[9:])) + b"0\r\n\r\n"
    else:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def exchange(port: int, client: str, behaviour: str, tag: str) -> tuple[list[Answer], bytes]:
    """One client's way with one upstream: its answers, and all bytes that it got."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = b""
    try:
        whole = message(behaviour, tag, chunks=client == "chunks", close=client != "twice")
        if client == "half":
            writer.write(whole[:-20])
            await writer.drain()
            return [], b""
        writer.write(whole)
        await writer.drain()
        if client == "leaves":
            await asyncio.wait([asyncio.ensure_future(reader.read(1))], timeout=0.1)
            return [], b""
        if client == "slow":
            for _ in range(40):
                raw += await reader.read(1)
                await asyncio.sleep(0.002)
        if client == "twice":
            writer.write(message("whole", f"{tag}-again"))  # pipelined behind the first
        while more := await reader.read(1 << 16):
            raw += more
    except ConnectionError:
        pass
    finally:
        writer.close()
    answers, rest = [], raw
    while rest:
        answer, after = parse(rest)
        answers.append(answer)
        if not answer.complete:
            break
        rest = after
    return answers, raw


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with raw_upstream() as found:
        yield found


def judge(client: str, behaviour: str, answers: list[Answer], raw: bytes) -> list[str]:
    """What is wrong with what a client got."""
    said = []
    if not answers:
        return ["no answer"]
    statuses, body, complete = EXPECTED[behaviour]
    first = answers[0]
    if first.status not in statuses:
        said.append(f"status {first.status}")
    if complete is not None and first.complete != complete:
        said.append(f"ends {'cleanly' if first.complete else 'in the middle'}")
    if body is not None and first.body != body:
        said.append(f"body {first.body[:80]!r}")
    if b"poisoned" in raw or SECRET.encode() in raw:
        said.append("bytes of another exchange")
    if first.headers.keys() & {"x-hop", "keep-alive", "upgrade"}:
        said.append(f"headers {sorted(first.headers)}")
    if client == "twice" and len(answers) > 1 and (answers[1].status, answers[1].body) != (200, WHOLE):
        # a POST on a connection that the upstream has spoilt or closes unannounced is not retried: it is an error
        if answers[1].status != 502 or (BEHAVIOURS[behaviour][1] == "keep" and behaviour != "long"):
            said.append(f"second answer {answers[1]}")
    if len(answers) > 1 + (client == "twice"):
        said.append(f"{len(answers)} answers")
    if behaviour == "redirect" and first.headers.get("location") != "/stream/v1/completions":
        said.append(f"location {first.headers.get('location')}")
    if behaviour == "too-many" and first.headers.get("retry-after") != "7":
        said.append("no retry-after")
    if behaviour == "connection-names" and first.headers.get("x-end") != "2":
        said.append("x-end is lost")
    return said


@pytest.mark.ci
@pytest.mark.parametrize("client", CLIENTS)
def test_no_behaviour_of_an_upstream_stops_the_proxy(
    upstream: RawUpstream, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.requests.clear()

    async def run(port: int) -> dict[str, tuple[list[Answer], bytes]]:
        calls = [
            asyncio.wait_for(exchange(port, client, behaviour, f"{client}-{behaviour}"), LIMIT_S)
            for behaviour in BEHAVIOURS
        ]
        return dict(zip(BEHAVIOURS, await asyncio.gather(*calls), strict=True))

    with proxy(upstream.url, Fixed(512), **SHORT) as url:
        status(url, controlling)
        got = asyncio.run(run(int(url.rpartition(":")[2])))
        found = status(url, lambda x: x["running"] == 0 and sum(x["waiting"].values()) == 0)
        page = httpx.get(f"{url}/metrics", trust_env=False).text
    wrong = {
        behaviour: said
        for behaviour, (answers, raw) in got.items()
        if client not in ("leaves", "half") and (said := judge(client, behaviour, answers, raw))
    }
    assert not wrong
    sent = Counter(json.loads(body)["user"] for _, body in upstream.requests)
    assert max(sent.values(), default=1) == 1  # none twice
    served = {f"{client}-{behaviour}" for behaviour in BEHAVIOURS}
    assert set(sent) <= served | {f"{tag}-again" for tag in served}
    if client == "half":
        assert not sent
    elif client != "leaves":
        assert served <= set(sent)
    requests = found["requests"]
    assert requests["entered"] == requests["finished"] + requests["rejected"] + requests["given_up"]
    assert found["running"] == 0 and sum(found["waiting"].values()) == 0
    counted = {
        name: float(n)
        for name, n in re.findall(r'requests_total\{outcome="(\w+)",priority="interactive"\} (\S+)', page)
    }
    assert sum(counted.values()) == requests["entered"]
    if client == "reads":
        refused = [name for name in BEHAVIOURS if name in ("not-found", "too-many", "redirect", "not-modified")]
        assert counted["refused"] == len(refused)
        tokens = float(re.findall(r"output_tokens_total ([\d.]+)", page)[0])
        assert sum(TOKENS.values()) <= tokens <= sum(TOKENS.values()) + 2  # cut-reset and both-lengths: one or none
        assert "opaque_answers_total 1.0" in page
    everything = caplog.text + page + json.dumps(found)
    assert SECRET not in everything and "Traceback" not in everything and "Exception" not in caplog.text


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: proxy\r\n\r\n"
LEGAL = b"POST /whole/v1/completions HTTP/1.1\r\nhost: proxy\r\n"
FRAMINGS: dict[str, bytes] = {
    "length and coding": LEGAL + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "coding and length": LEGAL + b"transfer-encoding: chunked\r\ncontent-length: 46\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "unknown coding": LEGAL + b"content-length: 46\r\ntransfer-encoding: xchunked\r\n\r\n" + SMUGGLED,
    "coding with a space": LEGAL + b"content-length: 46\r\ntransfer-encoding : chunked\r\n\r\n" + SMUGGLED,
    "coding with a tab": LEGAL + b"content-length: 46\r\ntransfer-encoding:\x0bchunked\r\n\r\n" + SMUGGLED,
    "two codings": LEGAL + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked not last": LEGAL + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "folded header": LEGAL + b"x: y\r\n transfer-encoding: chunked\r\ncontent-length: 46\r\n\r\n" + SMUGGLED,
    "bare line feeds": LEGAL.replace(b"\r\n", b"\n") + b"content-length: 46\n\n" + SMUGGLED,
    "two lengths": LEGAL + b"content-length: 0\r\ncontent-length: 46\r\n\r\n" + SMUGGLED,
    "lengths in one": LEGAL + b"content-length: 0, 46\r\n\r\n" + SMUGGLED,
    "plus length": LEGAL + b"content-length: +46\r\n\r\n" + SMUGGLED,
    "negative length": LEGAL + b"content-length: -1\r\n\r\n" + SMUGGLED,
    "hex length": LEGAL + b"content-length: 0x2e\r\n\r\n" + SMUGGLED,
    "huge length": LEGAL + b"content-length: 99999999999999999999\r\n\r\n" + SMUGGLED,
    "length in connection": LEGAL + b"connection: content-length\r\ncontent-length: 46\r\n\r\n" + SMUGGLED,
    "chunk size too long": LEGAL + b"transfer-encoding: chunked\r\n\r\n10000000000000000\r\n" + SMUGGLED,
    "chunk without end": LEGAL + b"transfer-encoding: chunked\r\n\r\n2e\r\n" + SMUGGLED + b"xx0\r\n\r\n",
    "trailers": LEGAL + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\ncontent-length: 46\r\n\r\n",
    "nul in a header": LEGAL + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
    "carriage return in a header": LEGAL + b"x: a\rtransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n{}",
    "space in a name": LEGAL + b"x y: z\r\ncontent-length: 2\r\n\r\n{}",
    "no name": LEGAL + b": z\r\ncontent-length: 2\r\n\r\n{}",
    "no host": b"GET /whole HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /whole HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "absolute target": b"GET http://elsewhere.example/whole HTTP/1.1\r\nhost: proxy\r\n\r\n",
    "target of two slashes": b"GET //elsewhere.example/whole HTTP/1.1\r\nhost: proxy\r\n\r\n",
    "target with an at": b"GET @elsewhere.example/ HTTP/1.1\r\nhost: proxy\r\n\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\nhost: proxy\r\n\r\n",
    "connect": b"CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: proxy\r\n\r\n",
    "target with a line": b"GET /whole?a=%0d%0ahost:%20x HTTP/1.1\r\nhost: proxy\r\n\r\n",
    "target with a fragment": b"GET /whole#x HTTP/1.1\r\nhost: proxy\r\n\r\n",
    "target that is no ASCII": b"GET /whole/\xff\xfe HTTP/1.1\r\nhost: proxy\r\n\r\n",
    "version 0.9": b"GET /whole\r\n\r\n",
    "version 3": b"GET /whole HTTP/3.0\r\nhost: proxy\r\n\r\n",
    "http 2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "upgrade to http 2": b"GET /whole HTTP/1.1\r\nhost: proxy\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "websocket": b"GET /whole HTTP/1.1\r\nhost: proxy\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "expect": LEGAL + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


def test_no_framing_of_a_client_reaches_the_upstream_as_another_request(
    upstream: RawUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.requests.clear()
    upstream.garbage.clear()

    async def one(port: int, raw: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        got = b""
        try:
            writer.write(raw)
            await writer.drain()
            writer.write_eof()
            while more := await reader.read(1 << 16):
                got += more
        except ConnectionError:
            pass
        finally:
            writer.close()
        return got

    async def run(port: int) -> dict[str, bytes]:
        return {name: await asyncio.wait_for(one(port, raw), LIMIT_S) for name, raw in FRAMINGS.items()}

    with proxy(upstream.url, Fixed(512), **SHORT) as url:
        got = asyncio.run(run(int(url.rpartition(":")[2])))
        found = status(url, lambda x: x["running"] == 0)
        alive = httpx.post(f"{url}/whole/v1/completions", json={}, trust_env=False)
    assert alive.content == WHOLE and found["running"] == 0
    assert not upstream.garbage
    tops = [top for top, _ in upstream.requests]
    assert not [top for top in tops if b"/smuggled" in top.split(b"\r\n")[0]]
    for top in tops:
        names = [line.partition(b":")[0].lower() for line in top.split(b"\r\n")[1:] if line]
        assert names.count(b"host") == 1 and names.count(b"content-length") <= 1
        assert not {b"connection", b"upgrade", b"expect", b"te", b"transfer-encoding"} & set(names)
        assert b"elsewhere.example" not in [line for line in top.lower().split(b"\r\n") if line.startswith(b"host:")][0]
    statuses = {name: raw.split(b" ")[1] for name, raw in got.items() if raw.startswith(b"HTTP/")}
    assert not [name for name, code in statuses.items() if code == b"500"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("named", ["x-secret", "X-Secret, close", "close,x-secret"])
def test_headers_that_connection_names_stay_with_their_connection(upstream: RawUpstream, named: str) -> None:
    upstream.requests.clear()
    with proxy(upstream.url) as url:
        headers = {"connection": named, "x-secret": "1", "keep-alive": "5", "proxy-authorization": "p", "x-kept": "2"}
        httpx.post(f"{url}/whole/v1/completions", json={}, headers=headers, trust_env=False)
    ((top, _),) = upstream.requests
    assert b"x-kept: 2" in top and not [x for x in (b"x-secret", b"keep-alive", b"proxy-auth") if x in top.lower()]


def test_an_upstream_with_user_and_password_takes_clients_with_keys_and_without(
    upstream: RawUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.requests.clear()
    root = upstream.url.replace("http://", "http://me:p%40ss@")
    with proxy(root) as url:
        for headers in ({"authorization": f"Bearer {SECRET}"}, {}):
            answer = httpx.post(f"{url}/whole/v1/completions", json={}, headers=headers, trust_env=False)
            assert answer.content == WHOLE
        shown = json.dumps(status(url))
    tops = [top for top, _ in upstream.requests]
    assert f"authorization: Bearer {SECRET}".encode() in tops[0]
    assert b"authorization: Basic bWU6cEBzcw==" in tops[1]  # me:p@ss
    assert "p%40ss" not in shown + caplog.text and "p@ss" not in shown + caplog.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions/",
        "//v1//completions",
        "/v1/./completions",
        "/x/../v1/completions",
        "/v1/%63ompletions",
        "/prefix/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/generate",
        "/inference/v1/generate",
        "/invocations",
        "/v1/audio/transcriptions",
        "/completion",
    ],
)
def test_every_way_to_make_an_engine_generate_waits_at_the_gate(path: str) -> None:
    assert generates("POST", unquote(path)) and not generates("GET", unquote(path))


@pytest.mark.parametrize(
    "path", ["/v1/models", "/tokenize", "/v1/messages/count_tokens", "/health", "/", "/completions_"]
)
def test_what_does_not_generate_passes_straight_on(path: str) -> None:
    assert not generates("POST", path)


def test_bodies_that_cannot_be_read_pass_as_they_are_and_null_is_no_priority(upstream: RawUpstream) -> None:
    deep = b"[" * 900 + b"]" * 900
    nested = b'{"messages":' + b'[{"content":' * 400 + b'"x"' + b"}]" * 400 + b"}"
    bodies = [deep, nested, b'{"priority":null}', b"\xff\xfe", b"", b'{"priority":' + b"9" * 4000 + b"}", b"null"]
    upstream.requests.clear()
    with proxy(upstream.url) as url:
        for body in bodies:
            answer = httpx.post(f"{url}/whole/v1/completions", content=body, trust_env=False)
            assert answer.content == WHOLE, (body[:20], answer)
        refused = httpx.post(f"{url}/whole/v1/completions", content=b'{"priority":%s}' % deep, trust_env=False)
        found = status(url)
    assert [body for _, body in upstream.requests] == bodies
    assert refused.status_code == 400 and "must be a whole number" in refused.text
    assert found["requests"]["finished"] == len(bodies)
