"""Bad inputs, generated: what a client may send to stop a server, or only by mistake. The same ones on every run."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Case:
    """One HTTP request."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))

    @property
    def size(self) -> int:
        """Bytes on the wire, about."""
        head = sum(len(name) + len(value) + 4 for name, value in self.headers.items())
        return len(self.method) + len(self.path) + 80 + head + len(self.body)


LOG = '{"action": {}, "metrics": {"tokens_per_sec": 1.0}}'
# What may stand where a value should: as JSON text, so that what no Python value is can be sent too.
VALUES = (
    "null", "true", "false", "[]", "{}", '""', '"x"', "0", "-1", "-0.0", "1.5", "1e400", "-1e400", "1e-400", "NaN",
    "Infinity", "-Infinity", "4294967296", "1" + "0" * 400, "1" + "0" * 5000, '"NaN"', '"1"', '"\\ud800"', '"\\udc00x"',
    '"\\u0000"', '"' + "a" * 300 + '"', '"' + "a" * 20_000 + '"', '"<script>alert(1)</script>"', '"../../etc/passwd"',
    '"%s%n{0}{x}"', "[" * 900 + "]" * 900, '{"a":' * 200 + "1" + "}" * 200, "[[[]]]", "[null]", '[{"a": 1}]',
    "[" + ",".join("1" * 3000) + "]", "{" + ",".join(f'"k{i}":{i}' for i in range(90)) + "}", "1e308", "1e-300",
    "\u2028",
)  # fmt: skip
FIELDS = {
    "/reset": ("task_id", "seed", "config", "episode_id", "surprise"),
    "/step": ("session_id", "action", "step_id", "timeout_s", "request_id"),
    "/grader": ("session_id", "task_id", "seed", "config", "actions", "episode_log"),
    "/rollout": ("task_id", "seeds", "policy", "actions", "config", "trajectories", "format"),
}
GOOD = {
    "/reset": {},
    "/step": {"session_id": '"nobody"', "action": "{}"},
    "/grader": {"task_id": "1", "seed": "1", "actions": "[{}]"},
    "/rollout": {"task_id": "1", "seeds": "[1]", "actions": "[[{}]]"},
}
CONFIG = ("alpha", "beta", "gamma", "delta", "slo_ttft_ms", "slo_tpot_ms")
KNOBS = ("kv_budget", "spec_length", "batch_size", "prefill_disagg", "quant_tier")


def body_of(fields: dict[str, str]) -> bytes:
    """A JSON object of fields whose values are JSON text."""
    return ("{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}").encode()


def one_field_wrong() -> Iterator[Case]:
    """Every field of every request, with every value that it may not have (and some that it may)."""
    for path, names in FIELDS.items():
        for name, (i, value) in itertools.product(names, enumerate(VALUES)):
            yield Case(f"{path} {name} value {i}", "POST", path, body_of(GOOD[path] | {name: value}))
    for name, (i, value) in itertools.product(CONFIG, enumerate(VALUES)):
        yield Case(f"config {name} value {i}", "POST", "/reset", body_of({"config": f'{{"{name}":{value}}}'}))
    for name, (i, value) in itertools.product(KNOBS, enumerate(VALUES)):
        fields = GOOD["/grader"] | {"actions": f'[{{"{name}":{value}}}]'}
        yield Case(f"knob {name} value {i}", "POST", "/grader", body_of(fields))


def several_configs(count: int = 60) -> Iterator[Case]:
    """Configs of several extreme fields together."""
    draw = random.Random(5)
    for i in range(count):
        task = draw.randint(1, 5)
        chosen = draw.sample(CONFIG[: 5 + (task > 3)], draw.randint(2, 5))
        weights, objectives = (0, 1e-300, 1e-46, 1e-38, 1e-10, 1, 1e9), (1e-3, 1, 1e9)  # of these all are accepted
        numbers = {name: draw.choice(objectives if name.startswith("slo") else weights) for name in chosen}
        if i % 2:
            numbers[draw.choice(chosen)] = draw.choice((1e-300, 1e-46, 1e-10, 1e10, 1e38, 1e39, 1e300))
        fields = {"task_id": str(task), "seed": str(i), "config": json.dumps(numbers)}
        yield Case(f"configs {i}", "POST", "/reset", body_of(fields))
        yield Case(f"configs {i} simulated", "POST", "/grader", body_of(fields | {"actions": "[{}]"}))


def filled(head: str, part: str, tail: str, size: int, separator: str = ",") -> bytes:
    """A body of about ``size`` bytes: one part again and again."""
    count = max(1, (size - len(head) - len(tail)) // (len(part) + len(separator)))
    return (head + separator.join([part] * count) + tail).encode()


def keys(count: int, name: str = "key") -> str:
    """The inside of an object of so many keys."""
    return ",".join(f'"{name}{i}":{i}' for i in range(count))


HEAVY_PARTS = {
    "seeds of -1": ("/rollout", '{"task_id":1,"policy":"baseline","seeds":[', "-1", "]}"),
    "good seeds": ("/rollout", '{"task_id":1,"policy":"baseline","seeds":[', "1", "]}"),
    "seeds that are objects": ("/rollout", '{"task_id":1,"policy":"baseline","seeds":[', "{}", "]}"),
    "seeds that are texts": ("/rollout", '{"task_id":1,"policy":"baseline","seeds":[', '"a"', "]}"),
    "sequences without an action": ("/rollout", '{"task_id":1,"seeds":[1],"actions":[', "[]", "]}"),
    "bad actions": ("/rollout", '{"task_id":1,"seeds":[1],"actions":[[', '{"batch_size":0}', "]]}"),
    "bad sequences": ("/rollout", '{"task_id":1,"seeds":[1],"actions":[', '[{"a":1,"b":2,"c":3}]', "]}"),
    "empty actions": ("/rollout", '{"task_id":1,"seeds":[1],"actions":[[', "{}", "]]}"),
    "a list as task": ("/rollout", '{"seeds":[1],"policy":"random","task_id":[', "1", "]}"),
    "a text as task": ("/rollout", '{"seeds":[1],"policy":"random","task_id":"', "aaaa,aaaa", '"}'),
    "empty log entries": ("/grader", '{"task_id":1,"episode_log":[', "{}", "]}"),
    "log entries of numbers": ("/grader", '{"task_id":1,"episode_log":[', "1", "]}"),
    "bad metrics": ("/grader", '{"task_id":1,"episode_log":[', '{"action":{},"metrics":{"a":"b","c":"d"}}', "]}"),
    "bad outcomes": (
        "/grader", '{"task_id":4,"episode_log":[{"action":{},"metrics":{},"outcome":{"asked":[', '"x"', "]}}]}"
    ),
    "actions of texts": ("/grader", '{"task_id":1,"seed":1,"actions":[', '"x"', "]}"),
    "arrays": ("/step", '{"session_id":"a","action":[', "[]", "]}"),
    "spaces": ("/step", "{", "    ", "}"),
}  # fmt: skip
KEYED = {
    "/reset": "{%s}",
    "/step": '{"session_id":"nobody","action":{%s}}',
    "/grader": '{"task_id":1,"episode_log":[{"action":{},"metrics":{%s}}]}',
    "/rollout": '{"task_id":1,"seeds":[1],"actions":[[{%s}]]}',
    "/mcp": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"step","arguments":{"session_id":"a",'
    '"action":{%s}}}}',
}


def heavy() -> Iterator[Case]:
    """Bodies whose size, values, keys or errors are many."""
    for name, (path, head, part, tail) in HEAVY_PARTS.items():
        for size in (2_000, 60_000, 900_000, 3_990_000):
            yield Case(f"{size} bytes of {name}", "POST", path, filled(head, part, tail, size))
    for (path, frame), count in itertools.product(KEYED.items(), (99, 2000, 40_000, 200_000)):
        yield Case(f"{count} keys for {path}", "POST", path, (frame % keys(count)).encode()[:3_999_999])
    objects = ",".join(f"{{{keys(90)}}}" for _ in range(200))
    yield Case("200 objects of 90 bad keys", "POST", "/grader", f'{{"task_id":1,"episode_log":[{objects}]}}'.encode())
    actions = ",".join(["[" + ",".join([f"{{{keys(90)}}}"] * 10) + "]"] * 400)
    body = f'{{"task_id":1,"seeds":[1],"actions":[{actions}]}}'.encode()[:3_999_999]
    yield Case("4,000 actions of 90 bad keys", "POST", "/rollout", body)
    whole = {"kv_budget": 0.5, "spec_length": 0, "batch_size": 64, "prefill_disagg": False, "quant_tier": 0}
    sequence = json.dumps([whole] * 200)
    good = f'{{"task_id":1,"seeds":{json.dumps(list(range(190)))},"actions":[{",".join([sequence] * 190)}]}}'
    yield Case("a good rollout of 38,000 actions", "POST", "/rollout", good.encode())
    yield Case("its last action bad", "POST", "/rollout", good.encode()[:-4] + b',"a":1}]]}')
    for path in ("/reset", "/step", "/grader", "/rollout", "/mcp", "/nowhere", "/healthz", "/tasks"):
        yield Case(f"above every limit for {path}", "POST", path, b"a" * 4_100_000)
        yield Case(f"deep arrays for {path}", "POST", path, b"[" * 60_000)
        yield Case(f"deep objects for {path}", "POST", path, b'{"a":' * 10_000)


def odd_requests() -> Iterator[Case]:
    """Methods, paths, queries, types and encodings that are not those of the API."""
    for method, path in itertools.product(
        ("PUT", "DELETE", "PATCH", "OPTIONS", "GET", "HEAD"), ("/reset", "/step", "/mcp", "/tasks", "/", "/%ff", "/a/b")
    ):
        yield Case(f"{method} {path}", method, path)
    for i, query in enumerate(
        ("", "session_id=", "session_id=%00", "session_id=%ff%fe", "session_id=" + "x" * 65,
         "session_id=" + "x" * 20_000,
         "session_id=%ED%A0%80", "&".join(["session_id=a"] * 2000), "a=1&" * 3000 + "session_id=b", "session_id[]=1")
    ):  # fmt: skip
        yield Case(f"state query {i}", "GET", f"/state?{query}")
    for kind in ("", "text/plain", "application/xml", "multipart/form-data; boundary=x",
                 "application/json; charset=utf-16",
                 "application/x-www-form-urlencoded", "application/" + "x" * 2000):  # fmt: skip
        for path in ("/reset", "/step", "/rollout", "/mcp"):
            yield Case(f"{path} as {kind[:40]!r}", "POST", path, b'{"task_id": 1}', {"content-type": kind})
    for name, body in {
        "utf-16": '{"task_id": 1}'.encode("utf-16"),
        "a mark": b'\xef\xbb\xbf{"task_id": 99}',
        "cut": b'{"task_id": ',
        "two values": b"{}{}",
        "nothing": b"",
        "zeros": bytes(1000),
        "a comment": b"{} // {}",
        "the same key twice": b'{"task_id": 1, "task_id": 99}',
        "not UTF-8": b'{"episode_id": "\xff\xfe"}',
        "half a pair as key": b'{"\\ud800": 1}',
    }.items():
        for path in ("/reset", "/step", "/grader", "/rollout", "/mcp"):
            yield Case(f"{path}: {name}", "POST", path, body)
    for name, value in {
        "x-request-id": "x" * 5000, "accept": "\x7f", "origin": "https://" + "a" * 3000, "cookie": "a=b;" * 2000,
        "x-forwarded-for": "1.2.3.4, " * 500, "if-none-match": '"' + "a" * 5000 + '"', "range": "bytes=0-1," * 500,
        "host": "evil.example", "expect": "200-maybe", "accept-encoding": "br;q=9,*",
    }.items():  # fmt: skip
        for path in ("/healthz", "/static/app.js", "/"):
            yield Case(f"{path} with {name}", "GET", path, b"", {name: value.replace("\x7f", "x").strip(" ,")})


def http_cases() -> list[Case]:
    """All of them."""
    return [*one_field_wrong(), *several_configs(), *heavy(), *odd_requests()]


def ws_messages() -> list[str | bytes]:
    """Bad WebSocket messages."""
    wraps = (
        '{{"type":"reset","data":{{"seed":{0}}}}}',
        '{{"type":"reset","data":{{"task_id":{0}}}}}',
        '{{"type":"reset","data":{{"config":{0}}}}}',
        '{{"type":"step","data":{{"batch_size":{0},"surprise":1}}}}',
        '{{"type":{0}}}',
    )
    many: list[str | bytes] = [wrap.format(value) for wrap in wraps for value in VALUES if value not in ("1.5", "0")]
    many += [f'{{"type":"step","data":{{{keys(count)}}}}}' for count in (99, 290, 2000, 6000)]
    many += [f'{{"type":"reset","data":{{{keys(count)}}}}}' for count in (99, 290, 6000)]
    many += ["[" * 60_000, "{" * 60_000, '{"a":' * 5000, "x" * 60_000, "x" * 200_000, b"\x00\xff", b"", "", "[]", "7"]
    many += ['{"type":"mcp","data":{"jsonrpc":"2.0","method":' + value + "}}" for value in VALUES[:10]]
    return many


def mcp_bodies() -> list[bytes]:
    """Bad JSON-RPC requests, and tool calls with bad arguments."""
    call = '{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":{0},"arguments":{1}}}}}'
    bodies = [call.format('"step"', f'{{"session_id":{value},"action":{{}}}}') for value in VALUES]
    bodies += [call.format('"step"', f'{{"session_id":"a","action":{value}}}') for value in VALUES]
    bodies += [call.format('"reset"', f'{{"task_id":{value}}}') for value in VALUES]
    bodies += [call.format(value, "{}") for value in VALUES]
    bodies += [call.format('"step"', f"{{{keys(count)}}}") for count in (50, 90, 290, 2000, 5000)]
    bodies += [f'{{"jsonrpc":"2.0","id":{value},"method":"tools/list"}}' for value in VALUES]
    bodies += [f'{{"jsonrpc":"2.0","id":1,"method":{value}}}' for value in VALUES[:15]]
    bodies += [f'{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{value}}}' for value in VALUES[:15]]
    return [body.encode() for body in bodies]


def raw_inputs() -> list[bytes]:
    """Bytes on a connection that are no HTTP, or HTTP of the kind that confuses."""
    post = b"POST /step HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    many = [
        b"",
        b"\r\n\r\n",
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /%zz%00 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"get / http/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"* / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\nhost: a\n\n",
        b"GET / HTTP/1.1\r\n: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nh\x00st: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n",
        b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 300_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: a\r\n" * 60_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        post + b"content-length: -1\r\n\r\n{}",
        post + b"content-length: 2, 3\r\n\r\n{}",
        post + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        post + b"content-length: 99999999999999999999\r\n\r\n{}",
        post + b"content-length: 0x2\r\n\r\n{}",
        post + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        post + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        post + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        post + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        post + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 60_000 + b"0\r\n\r\n",
        post + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: a\r\n" * 60_000 + b"\r\n",
        post + b"transfer-encoding: chunked\r\n\r\n2;" + b"a=b;" * 60_000 + b"\r\n{}\r\n0\r\n\r\n",
    ]
    many += [b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n" % path * 7000 for path in (b"healthz", b"tasks", b"nowhere", b"")]
    draw = random.Random(7)
    good = post + b"content-length: 2\r\n\r\n{}"
    many += [good * 2500, good * 100 + b"nonsense\r\n\r\n"]
    while len(many) < 120:  # a good request with bytes changed
        changed = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        many.append(bytes(changed))
    return many


def frame(kind: int, payload: bytes, last: bool = True) -> bytes:
    """A masked WebSocket frame; ``kind``: 0 a further part of a message, 1 text, 2 binary, 9 ping, 10 pong."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2) if size < 65536 else b""
    length = length or b"\xff" + size.to_bytes(8)
    return bytes([kind | (0x80 if last else 0)]) + length + bytes(4) + payload


def floods() -> dict[str, bytes]:
    """What a client may send over and over on a WebSocket, a quarter of a megabyte or more of each."""
    return {
        "tiny messages": frame(1, b"7") * 36_000,
        "empty objects": frame(1, b"{}") * 30_000,
        "states": frame(1, b'{"type":"state"}') * 12_000,
        "messages of the greatest size": frame(1, b"x" * 250_000) * 4,
        "empty pings": frame(9, b"") * 40_000,
        "pings": frame(9, b"x" * 125) * 4000,
        "pongs": frame(10, b"x" * 125) * 4000,
        "parts of nothing": frame(1, b"x", last=False) + frame(0, b"", last=False) * 40_000,
        "parts without end": frame(1, b"x", last=False) + frame(0, b"xxxxxx", last=False) * 40_000,
        "binary": frame(2, b"\x00") * 36_000,
    }
