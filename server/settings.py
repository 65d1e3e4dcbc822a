"""The server's settings: environment variables, checked at start."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.bounds import MOST_EPISODES

HttpAddress = Annotated[str, Field(pattern=r"^https?://[^\s\"'<>]+$")]


class Settings(BaseSettings):
    """Every setting, its environment variable (the same name in capitals) and its default."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    host: str = Field(default="0.0.0.0", description="address to listen on")
    port: int = Field(default=7860, ge=0, le=65535, description="port to listen on")
    workers: int = Field(default=1, ge=1, le=64, description="processes; more than one needs REDIS_URL")
    redis_url: str | None = Field(default=None, description="sessions in Redis, shared by workers; unset: in process")
    session_capacity: int = Field(
        default=10_000, ge=1, description="HTTP sessions in process; the least recently used go"
    )
    session_idle_s: float = Field(default=1800.0, gt=0, description="seconds without a request until a session expires")
    ws_sessions: int = Field(default=256, ge=1, description="WebSocket sessions at once")
    rate_limit: str = Field(default="100/second", description="requests per client address: N/second, N/minute or off")
    max_body_bytes: int = Field(
        default=4_000_000, ge=1024, description="largest body of a POST /rollout; others have less"
    )
    connections: int = Field(default=2048, ge=1, description="connections at once; more are closed unread")
    forwarded_allow_ips: str = Field(
        default="", description="proxies whose X-Forwarded-For is believed, by comma; unset: none"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(default=("*",), description="allowed origins, by comma")
    public_url: HttpAddress | None = Field(
        default=None, description="the address that people reach the page at, for link previews; unset: the request's"
    )
    repository_url: HttpAddress | None = Field(default=None, description="where the page's Repository leads to")
    documentation_url: HttpAddress | None = Field(
        default=None, description="where the page's Documentation leads to; unset: /docs, the API"
    )
    table: str | None = Field(default=None, description="path of a latency table of your own (parquet or CSV)")
    trace: str | None = Field(
        default=None, description="path of a request log of your own, replayed open-loop as every task's traffic"
    )
    trace_unit: str | None = Field(default=None, description="unit of the log's times: s, ms, us or ns; unset: found")
    trace_columns: str | None = Field(
        default=None, description="columns of the log: time=NAME,prompt=NAME,output=NAME; unset: found"
    )
    trace_from: str | None = Field(default=None, description="read the log from here on: 2h, 3d or a date")
    trace_to: str | None = Field(default=None, description="read the log up to here: 2h, 3d or a date")
    trace_last: str | None = Field(default=None, description="read the log's last part only: 7d, 12h")
    tasks_from: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="paths of Python or JSON files of tasks of your own, by comma"
    )
    rollout_episodes: int = Field(
        default=4096, ge=1, le=MOST_EPISODES, description="most episodes of one POST /rollout"
    )
    rollout_trajectories: int = Field(default=64, ge=1, description="most episodes of a POST /rollout with JSON steps")
    program_memory_mb: int = Field(
        default=400, ge=1, description="MB of compiled programs in memory, by estimate; the least recently used go"
    )
    warm_rollouts: bool = Field(default=True, description="compile POST /rollout's program right after the start")
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="debug, info, warning, error"
    )

    @field_validator("cors_origins", "tasks_from", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator(
        "redis_url",
        "table",
        "trace",
        "trace_unit",
        "trace_columns",
        "trace_from",
        "trace_to",
        "trace_last",
        "public_url",
        "repository_url",
        "documentation_url",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("rate_limit")
    @classmethod
    def _limit(cls, value: str) -> str:
        text = value.strip().lower()
        if text == "off":
            return text
        match = re.fullmatch(r"([1-9]\d{0,8})(?:\s*/\s*(second|minute|hour))?", text)
        if match is None:
            raise ValueError("must be off, a number of requests a second, or N/second, N/minute, N/hour")
        return f"{match[1]}/{match[2] or 'second'}"
