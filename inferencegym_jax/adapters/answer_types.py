"""What a server's answers are read as: the library's types, by the kind of the task; and actions as JSON."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from inferencegym_jax.fleet.action import FleetAction, check_fleet_action
from inferencegym_jax.fleet.observation import FLEET_OBSERVATION, FleetObservation
from inferencegym_jax.fleet.state import FLEET_METRICS, FLEET_WORKLOAD, FleetMetrics, FleetWorkload
from inferencegym_jax.models import (
    METRICS,
    OBSERVATION,
    WORKLOAD,
    MetricsSnapshot,
    ServeAction,
    ServeObservation,
    WorkloadState,
    check_action,
)


def knobs(action: ServeAction | FleetAction | Mapping[str, Any]) -> dict[str, Any]:
    """An action as JSON; a ``ServeAction`` or a ``FleetAction`` is checked here, a mapping by the server."""
    if isinstance(action, FleetAction):
        check_fleet_action(action)
        return action.to_dict()
    if isinstance(action, ServeAction):
        check_action(action)
        return action.to_dict()
    return dict(action)


def known(fields: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    """The fields that this library has; a newer server may send more."""
    return {name: value for name, value in fields.items() if name in names}


class Parts(NamedTuple):
    """What the answers about an episode are read as: a type and its fields for each part."""

    observation: tuple[type[Any], Container[str]]
    metrics: tuple[type[Any], Container[str]]
    workload: tuple[type[Any], Container[str]]

    def read(self, part: str, fields: Mapping[str, Any]) -> Any:
        """One part of an answer."""
        kind, names = getattr(self, part)
        return kind(**known(fields, names))


ENGINE: Parts = Parts((ServeObservation, OBSERVATION), (MetricsSnapshot, METRICS), (WorkloadState, WORKLOAD))
FLEET: Parts = Parts(
    (FleetObservation, FLEET_OBSERVATION), (FleetMetrics, FLEET_METRICS), (FleetWorkload, FLEET_WORKLOAD)
)


def observation_of(fields: Mapping[str, Any]) -> ServeObservation | FleetObservation:
    """The observation of an answer that says of no task: a fleet's where it has all of a fleet's fields."""
    parts = FLEET if all(name in fields for name in FLEET_OBSERVATION) else ENGINE
    return parts.read("observation", fields)
