"""What a WebSocket message must be before OpenEnv's handler sees it.

That handler ends a session over a message that is no object, is nested a thousand deep, holds an integer of thousands
of digits or half a surrogate pair, or is binary. Here such a message is answered, and the session goes on.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/ws"
MOST_PARTS = 100  # arrays and objects in a message; a reset has three


def complaint(message: Message) -> str | None:
    """Why a message cannot be passed on, or None. What is no JSON at all OpenEnv answers itself."""
    text = message.get("text")
    if text is None:
        return "a binary message; send text"
    if text.count("{") + text.count("[") > MOST_PARTS:
        return f"more than {MOST_PARTS} arrays and objects in one message"
    try:
        message = json.loads(text)
        if "\\u" in text:
            json.dumps(message, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        return None
    except UnicodeEncodeError:
        return "half of a surrogate pair is no character"
    except ValueError:
        return "an integer of thousands of digits"
    return None if isinstance(message, dict) else 'must be an object, for example {"type": "reset", "data": {}}'


class MessageCheck:
    """Answers messages on ``/ws`` that OpenEnv's handler would not survive; passes on everything else."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the connection on and look at what it receives."""
        if scope["type"] != "websocket" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return

        async def checked() -> Message:
            while True:
                message = await receive()
                wrong = complaint(message) if message["type"] == "websocket.receive" else None
                if wrong is None:
                    return message
                error: dict[str, Any] = {"message": f"Invalid JSON: {wrong}", "code": "INVALID_JSON"}
                body = orjson.dumps({"type": "error", "data": error}).decode()
                await send({"type": "websocket.send", "text": body})

        await self.app(scope, checked, send)
