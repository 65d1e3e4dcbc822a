"""What the agent sets, what the simulator answers, and the ranges of both.

First room of the data flow: everything else imports from here. The range, unit and meaning of every knob, of
every observation field and of every reported number are written once, in ``KNOBS``, ``OBSERVATION``, ``METRICS`` and
``WORKLOAD``; spaces, packing, random draws, network heads, the HTTP schemas, the page and the command line's help read
them from here.
"""

from inferencegym_jax.models.action import KNOBS, Knob, QuantTier, ServeAction, check_action, check_knob
from inferencegym_jax.models.checks import SEEDS, check_seed, check_whole, finite_number, is_traced, plain, shown
from inferencegym_jax.models.engine import (
    CLASSES,
    DRAFTS,
    DRAWN,
    HOURS,
    KINDS,
    LEVELS,
    LINE_SECONDS,
    PHASES,
    PREFILL_GPU,
    REPLICA,
    SHORT_OUTPUTS,
    TIME_SCALES,
    TRAFFIC_DAY,
    TRAFFIC_FITTED,
    TRAFFIC_OF_TASK,
    TRAFFIC_TRACE,
    DayTraffic,
    EngineParams,
    EngineState,
    Scalar,
)
from inferencegym_jax.models.metrics import METRICS, WORKLOAD, MetricsSnapshot, Phase, WorkloadState
from inferencegym_jax.models.observation import (
    EPISODE_LENGTH,
    FLAT_OBSERVATION_SIZE,
    LONGEST_EPISODE,
    OBSERVATION,
    QUEUE_CAPACITY,
    ObservationField,
    ServeObservation,
)
from inferencegym_jax.models.outcome import OUTCOME, RequestOutcome
from inferencegym_jax.models.quantity import Quantity
from inferencegym_jax.models.state import REWARD_WEIGHTS, EnvParams, EnvState, EpisodeState, RewardWeight
from inferencegym_jax.models.trajectory import Trajectory

__all__ = [
    "CLASSES",
    "DRAFTS",
    "DRAWN",
    "EPISODE_LENGTH",
    "FLAT_OBSERVATION_SIZE",
    "HOURS",
    "KINDS",
    "KNOBS",
    "LEVELS",
    "LINE_SECONDS",
    "LONGEST_EPISODE",
    "METRICS",
    "OBSERVATION",
    "OUTCOME",
    "PHASES",
    "PREFILL_GPU",
    "QUEUE_CAPACITY",
    "REWARD_WEIGHTS",
    "REPLICA",
    "SEEDS",
    "SHORT_OUTPUTS",
    "TIME_SCALES",
    "TRAFFIC_DAY",
    "TRAFFIC_FITTED",
    "TRAFFIC_OF_TASK",
    "TRAFFIC_TRACE",
    "WORKLOAD",
    "DayTraffic",
    "EngineParams",
    "EngineState",
    "EnvParams",
    "EnvState",
    "EpisodeState",
    "Knob",
    "MetricsSnapshot",
    "ObservationField",
    "Phase",
    "QuantTier",
    "RequestOutcome",
    "Quantity",
    "RewardWeight",
    "Scalar",
    "ServeAction",
    "ServeObservation",
    "Trajectory",
    "WorkloadState",
    "check_action",
    "check_knob",
    "check_seed",
    "check_whole",
    "finite_number",
    "is_traced",
    "plain",
    "shown",
]
