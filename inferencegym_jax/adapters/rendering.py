"""What Gymnasium's environments show of an episode: a line, the timeline as a picture, or the picture in a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inferencegym_jax.adapters.timeline import Timeline, picture
from inferencegym_jax.models import KNOBS, EnvParams, shown
from inferencegym_jax.tasks import TaskSpec

RENDER_MODES = ("ansi", "rgb_array", "human")
RENDER_FPS = 10  # of videos and of the window
COLUMNS = ("arrivals", "queue", "ttft_p50_ms", "ttft_p99_ms", "memory_gb", "out_of_memory", "burst")


def check_render_mode(mode: str | None, modes: tuple[str, ...] = RENDER_MODES) -> None:
    """Refuse a render mode that there is not.

    Raises:
        ValueError: the message names those that there are.
    """
    if mode not in (None, *modes):
        raise ValueError(f"render_mode = {shown(mode)}: must be None or one of {', '.join(map(repr, modes))}")


class Renderer:
    """Keeps what one environment's episode has shown so far, where there is a render mode, and shows it.

    Args:
        spec: the task.
        params: the same.
        mode: None keeps and shows nothing.
    """

    def __init__(self, spec: TaskSpec, params: EnvParams, mode: str | None):
        self._mode = mode
        self._title = spec.title
        self._slo_ms = tuple(float(x) for x in np.asarray(params.slo_ms) if np.isfinite(x))
        self._limit_gb = float(params.memory_limit_gb)
        self._length = int(params.episode_length)
        self._locked = {
            name: knob.default
            for on, (name, knob) in zip(np.asarray(params.active), KNOBS.items(), strict=True)
            if not on
        }
        self._window: Any = None
        self._seed = 0
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the window, which stays with its process."""
        return vars(self) | {"_window": None}

    def begin(self, seed: int) -> None:
        """An episode starts."""
        self._seed = seed
        self._forget()
        if self._mode == "human":
            self._show()

    def add(self, info: Mapping[str, Any], knobs: Mapping[str, Any], reward: float) -> None:
        """A second was served: its ``info`` in plain numbers, the knobs that were asked for, its reward."""
        if self._mode is None:
            return
        metrics, workload = info["metrics"], info["workload"]
        self._line = (
            f"t {info['timestep']:3d}  queue {workload['queue_depth']:3d}  TTFT {metrics['ttft_p50_ms']:.0f} ms  "
            f"{metrics['tokens_per_sec']:.0f} tokens/s  {metrics['gpu_memory_gb']:.1f} GB  reward {reward:+.3f}"
        )
        self._return += reward
        row = (
            workload["arrivals"],
            workload["queue_depth"],
            metrics["ttft_p50_ms"],
            metrics["ttft_p99_ms"],
            metrics["gpu_memory_gb"],
            info["oom"],
            workload["is_burst"],
        )
        self._rows.append(row)
        self._knobs.append({**knobs, **self._locked})
        if self._mode == "human":
            self._show()

    def render(self) -> Any:
        """A line ("ansi"), uint8[height, width, 3] ("rgb_array"), or None."""
        if self._mode == "ansi":
            return self._line
        return picture(self.timeline()) if self._mode == "rgb_array" else None

    def timeline(self) -> Timeline:
        """The episode so far."""
        columns = np.asarray(self._rows, np.float64).reshape(-1, len(COLUMNS)).T
        fields: dict[str, Any] = dict(zip(COLUMNS, columns, strict=True))
        fields |= {name: fields[name] > 0 for name in ("out_of_memory", "burst")}
        return Timeline(
            title=f"{self._title}, seed {self._seed}: return {self._return:.1f} after {len(self._rows)} s",
            knobs={name: np.asarray([one[name] for one in self._knobs]) for name in KNOBS},
            slo_ms=self._slo_ms,
            memory_limit_gb=self._limit_gb,
            length=self._length,
            **fields,
        )

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            import pygame  # pyright: ignore[reportMissingImports]

            pygame.display.quit()
            self._window = None

    def _forget(self) -> None:
        self._line, self._return = "no step yet", 0.0
        self._rows: list[tuple[Any, ...]] = []
        self._knobs: list[dict[str, Any]] = []

    def _show(self) -> None:
        """Draw in the window, which is opened at the first call."""
        try:
            import pygame  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("render_mode 'human' needs pygame: pip install 'inferencegym-jax[render]'") from error
        pixels = np.ascontiguousarray(picture(self.timeline()).swapaxes(0, 1))
        if self._window is None:
            pygame.display.init()
            self._window = pygame.display.set_mode(pixels.shape[:2])
            pygame.display.set_caption(self._title)
        pygame.surfarray.blit_array(self._window, pixels)
        pygame.event.pump()
        pygame.display.flip()
