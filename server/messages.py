"""What a WebSocket message must be before OpenEnv's handlers see it, and how long their errors may be.

Those handlers end a session over a message that is no object, is nested a thousand deep, holds an integer of thousands
of digits or half a surrogate pair, or is binary; they work in proportion to its errors and answer all of them. Here
such a message is answered, and the session goes on.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.bad_input import sentence, short
from server.bounds import MESSAGE, TooMuch, excess, read_json

PATH, MCP_PATH = "/ws", "/mcp"
LINK = "errors.pydantic.dev"
TEXT = 600  # characters of an error's message


def complaint(message: Message) -> str | None:
    """Why a message cannot be passed on, or None. What is no JSON at all OpenEnv answers itself."""
    text = message.get("text")
    if text is None:
        return "a binary message; send text"
    if len(text) > MESSAGE:
        return f"more than {MESSAGE} characters in one message"
    try:
        value = read_json(text.encode())
    except json.JSONDecodeError:
        return None
    except (TooMuch, UnicodeEncodeError) as error:
        return str(error) if isinstance(error, TooMuch) else "half of a surrogate pair is no character"
    except RecursionError:
        return "arrays or objects nested a thousand deep"
    except ValueError:
        return "an integer of thousands of digits"
    if not isinstance(value, dict):
        return 'must be an object, for example {"type": "reset", "data": {}}'
    return excess(value)


def shortened(text: str) -> str:
    """An error of OpenEnv's as a client can use it: what is wrong in a sentence, no links, no copy of the input.
    Everything else as it is."""
    response = json.loads(text)
    data: dict[str, Any] | None = response.get("data") if response.get("type") == "error" else None
    data = data or response.get("error") or (response.get("data") or {}).get("error")  # JSON-RPC, alone or in a message
    if not data:
        return text
    errors = data.pop("errors", None)
    if errors:
        data["message"] = f"{data['message']}: {sentence(errors)}"
        data["errors"] = [{"loc": short(entry["loc"]), "msg": entry["msg"]} for entry in errors[:3]]
    elif LINK in data["message"]:  # a ValidationError as text
        lines = [line for line in data["message"].splitlines() if LINK not in line]
        data["message"] = " ".join(line.strip() for line in lines)
    if len(data["message"]) > TEXT:
        data["message"] = data["message"][: TEXT - 3] + "..."
    return orjson.dumps(response).decode()


def refusal(path: str, why: str) -> str:
    """The error that a path's clients read."""
    if path == PATH:
        error: dict[str, Any] = {"type": "error", "data": {"message": f"Invalid JSON: {why}", "code": "INVALID_JSON"}}
    else:
        error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": f"Invalid request: {why}"}}
    return orjson.dumps(error).decode()


class MessageCheck:
    """Answers messages that OpenEnv's handlers would not survive, and shortens their errors."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the connection on and look at what it receives and sends."""
        if scope["type"] != "websocket" or scope["path"] not in (PATH, MCP_PATH):
            await self.app(scope, receive, send)
            return

        async def checked() -> Message:
            while True:
                message = await receive()
                wrong = complaint(message) if message["type"] == "websocket.receive" else None
                if wrong is None:
                    return message
                await send({"type": "websocket.send", "text": refusal(scope["path"], wrong)})

        async def brief(message: Message) -> None:
            text = message.get("text") or ""
            if '"error' in text and (len(text) > TEXT or "errors" in text):
                message = {**message, "text": shortened(text)}
            await send(message)

        await self.app(scope, checked, brief)
