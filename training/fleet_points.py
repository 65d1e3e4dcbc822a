"""Settings of policies as points, GPU-seconds over the share on time, and their frontiers with intervals by day.

``statistics of a setting -> Points.add -> rows``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym_jax.fleet.spec import FleetSpec
from inferencegym_jax.fleet.statistics import FleetStatistics, share_on_time
from inferencegym_jax.traffic.days import SEED_STRIDE
from training.fleet_search import frontier

RESAMPLES = 1000
SETTINGS: tuple[dict[str, Any], ...] = (
    {"clock": 12.0, "start_s": 30.0},
    {"clock": 1.0, "start_s": 100.0, "windows_a_day": 12},
)
"""What every row is measured under: a fast clock with the usual start, and real time, in windows of two hours, with a
slow one."""


def seeds_of(spec: FleetSpec, days: int, first: int = 0) -> np.ndarray:
    """Seeds of days; of a task with several windows a day of as many windows, of days apart: uint32[days].

    Args:
        spec: the task.
        days: how many.
        first: seed of the first: held-out days begin at 0, training days at 2^31.
    """
    stride = 1 if spec.windows_a_day == 1 else SEED_STRIDE
    return (first + stride * np.arange(days)).astype(np.uint32)


def resampled(gpus: np.ndarray, on_time: np.ndarray, judged: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """The frontier of each resample of the days: float64[resamples].

    Args:
        gpus, on_time, judged: float64[settings, days].
        picks: int[resamples, days].
    """
    frontiers = []
    for pick in picks:
        frontiers.append(frontier(gpus[:, pick].mean(axis=-1), share_on_time(on_time[:, pick], judged[:, pick])))
    return np.asarray(frontiers)


class Points:
    """Points of several rows, each of which runs over its settings.

    Args:
        days: that every point was measured on.
    """

    def __init__(self, days: int) -> None:
        self.settings: dict[str, list[dict[str, Any]]] = {}
        self._points: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        self._picks = np.random.default_rng(0).integers(days, size=(RESAMPLES, days))

    def add(self, name: str, label: Any, gpus: Any, on_time: Any, judged: Any, changed: Any) -> dict[str, Any]:
        """One setting of a row; what it came to over all days.

        Args:
            name: of the row.
            label: of the setting.
            gpus: float64[days], mean GPUs.
            on_time: float64[days], requests.
            judged: float64[days], requests whose fate is known.
            changed: float64[days], size changes an hour.
        """
        self._points.setdefault(name, []).append((np.asarray(gpus), np.asarray(on_time), np.asarray(judged)))
        setting = setting_of(label, gpus, on_time, judged, changed)
        self.settings.setdefault(name, []).append(setting)
        return setting

    def add_statistics(self, name: str, label: Any, statistics: FleetStatistics, i: Any = ...) -> dict[str, Any]:
        """``add`` of what a batch came to, or of row ``i`` of it."""
        on_time, judged = statistics.on_time[i], statistics.judged[i]
        return self.add(name, label, statistics.mean_gpus[i], on_time, judged, statistics.changes_an_hour[i])

    def rows(self, fixed: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """``{"rule", "gpus", "settings", "over_fixed"}`` of every row, in the order in which they came.

        Args:
            fixed: the row that ``over_fixed`` is over; default: the first one.
        """
        rows: list[dict[str, Any]] = []
        for name, by_setting in self._points.items():
            gpus, on_time, judged = (np.stack(x) for x in zip(*by_setting, strict=True))
            drawn = resampled(gpus, on_time, judged, self._picks)
            mean = frontier(gpus.mean(axis=-1), share_on_time(on_time, judged))
            reached = np.isfinite(drawn)
            interval = None
            if np.isfinite(mean) and reached.mean() > 0.9:
                low, high = np.percentile(drawn[reached], (2.5, 97.5))
                interval = {"mean": mean, "low": float(low), "high": float(high)}
            rows.append({"rule": name, "gpus": interval, "settings": self.settings[name]})
        base = (fixed or rows[0])["gpus"]
        for row in rows:
            known = row["gpus"] is not None
            row["over_fixed"] = row["gpus"]["mean"] / base["mean"] - 1.0 if known and base else None
        return rows


def setting_of(label: Any, gpus: Any, on_time: Any, judged: Any, changed: Any) -> dict[str, Any]:
    """What a setting came to over all days; arguments as of ``Points.add``."""
    on_time, judged = np.asarray(on_time), np.asarray(judged)
    return {
        "setting": label,
        "on_time_share": float(share_on_time(on_time, judged)),
        "worst_day": float((on_time / np.maximum(judged, 1e-9)).min()),
        "gpus": float(np.mean(gpus)),
        "changes_an_hour": float(np.mean(changed)),
    }
