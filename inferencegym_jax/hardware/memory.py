"""What a model takes of each GPU, and the smallest number of GPUs that holds it.

``ModelShape, Gpu, Placement, dtypes -> Plan``. All amounts are of one GPU, in GB of 1e9 bytes: weights of its share,
KV cache of its share, the runtime. Nothing here is measured; each formula says where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from inferencegym_jax.hardware.dtypes import Dtype, kv_bytes
from inferencegym_jax.hardware.gpus import Gpu
from inferencegym_jax.hardware.model_shape import ModelShape
from inferencegym_jax.models import finite_number, shown
from inferencegym_jax.table import TableError

MEMORY_SHARE = 0.92  # of what the driver reports an engine may take: vLLM's gpu_memory_utilization since 0.22
RUNTIME_GB = 2.5  # CUDA context, graphs and activations; an assumption, that of the shipped profile
COMMUNICATION_GB = 0.4  # buffers of NCCL between several GPUs (aiconfigurator-core 0.12.0, nccl_mem)
REFERENCE_CONTEXT = 2048  # tokens at which a cache with sliding windows is averaged
MOST_GPUS = 256
END_BYTES = 2.0  # embedding and output head stay at 16 bits in every weight format


class DoesNotFitError(TableError):
    """The model does not fit on these GPUs; the message says what would do."""


@dataclass(frozen=True)
class Placement:
    """How a model is cut over GPUs.

    Attributes:
        tp: tensor parallel, GPUs that share every layer.
        ep: expert parallel, parts into which the experts are dealt; the rest of tp x dp cuts each expert.
        pp: pipeline stages.
        dp: attention data parallel: copies of the attention layers that share the experts.
    """

    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of one engine."""
        return self.tp * self.pp * self.dp

    @property
    def copies(self) -> int:
        """Parts of a batch that run side by side: pipeline stages and attention copies."""
        return self.pp * self.dp

    def __str__(self) -> str:
        """``TP4``, ``TP8 EP8``, ``TP8 PP2``."""
        rest = [f"{name.upper()}{n}" for name, n in (("ep", self.ep), ("pp", self.pp), ("dp", self.dp)) if n > 1]
        return " ".join([f"TP{self.tp}", *rest])


def checked_placement(placement: Placement, shape: ModelShape | None) -> Placement:
    """The placement, if the model can be cut so.

    Raises:
        TableError: a number that is no whole number from 1 to 256, does not divide the heads, or the experts.
    """
    for name in ("tp", "ep", "pp", "dp"):
        value = getattr(placement, name)
        number = finite_number(value)
        if number is None or number != int(number) or not 1 <= number <= MOST_GPUS:
            raise TableError(f"{name} = {shown(value)}: must be a whole number from 1 to {MOST_GPUS}")
    if placement.gpus > MOST_GPUS:
        raise TableError(f"tp x pp x dp = {placement.gpus}: must be at most {MOST_GPUS} GPUs")
    width = placement.tp * placement.dp
    if width % placement.ep:
        raise TableError(f"ep = {placement.ep}: must divide tp x dp = {width}")
    if shape is None:
        return placement
    if shape.heads % placement.tp:
        raise TableError(f"tp = {placement.tp}: must divide the {shape.heads} attention heads")
    if placement.pp > shape.layers:
        raise TableError(f"pp = {placement.pp}: must be at most the {shape.layers} layers")
    if placement.ep > 1 and (not shape.experts or shape.experts % placement.ep):
        raise TableError(
            f"ep = {placement.ep}: must divide the {shape.experts} experts"
            if shape.experts
            else f"ep = {placement.ep}: must be 1, the model has no experts"
        )
    if placement.dp > 1 and not shape.experts:
        raise TableError(f"dp = {placement.dp}: must be 1, only a mixture of experts shares them over attention copies")
    return placement


def weights_gb(shape: ModelShape, dtype: Dtype, placement: Placement) -> float:
    """Weights on each GPU, GB: attention and ends divided by tp, experts by tp x dp, all but the ends by pp.

    The ends (embedding, output head) stand on the first and last stage; a stage is counted with both.
    """
    plain = 2.0 if dtype.experts_only else dtype.bytes
    layers = (shape.attention_parameters + shape.dense_parameters) / placement.tp * plain
    layers += shape.expert_parameters / (placement.tp * placement.dp) * dtype.bytes
    return (layers / placement.pp + shape.end_parameters / placement.tp * END_BYTES) / 1e9


def kv_bytes_per_token(
    shape: ModelShape, kv_dtype: str, placement: Placement, context: float = REFERENCE_CONTEXT
) -> float:
    """Bytes of KV cache a token on each GPU, averaged over a sequence of ``context`` tokens.

    The average matters only to sliding windows; elsewhere each token takes the same. Attention copies hold different
    sequences, so a token of the engine takes 1 / dp of this on each GPU, which is what is returned.
    """
    values = shape.kv_values(context, placement.tp) / context
    return values * kv_bytes(kv_dtype) / placement.pp / placement.dp


def runtime_gb(gpu: Gpu, placement: Placement) -> float:
    """What of a GPU's ``memory_gb`` neither weights nor cache may take.

    The engine takes ``MEMORY_SHARE`` of what the driver reports; of that the runtime takes 2.5 GB, and 0.4 GB more with
    several GPUs. Where 0.92 of the driver's figure exceeds what the GPU is sold with, the latter binds.
    """
    kept = max(gpu.memory_gb - MEMORY_SHARE * gpu.capacity_gb, 0.0)
    return kept + RUNTIME_GB + (COMMUNICATION_GB if placement.gpus > 1 else 0.0)


@dataclass(frozen=True)
class Plan:
    """What one GPU of an engine holds, GB (weights, runtime, room for the cache), bytes a token, tokens."""

    placement: Placement
    weights_gb: float
    runtime_gb: float
    room_gb: float
    kv_bytes_per_token: float

    @property
    def pool_tokens(self) -> float:
        """Tokens that the KV caches of the engine hold; below 0 where not even the weights fit."""
        return self.room_gb * 1e9 / self.kv_bytes_per_token


def plan(shape: ModelShape, gpu: Gpu, dtype: Dtype, kv_dtype: str, placement: Placement) -> Plan:
    """The plan of a placement, whether it fits or not."""
    weights, runtime = weights_gb(shape, dtype, placement), runtime_gb(gpu, placement)
    room = gpu.memory_gb - weights - runtime
    return Plan(placement, weights, runtime, room, kv_bytes_per_token(shape, kv_dtype, placement))


def least_tokens(shape: ModelShape) -> float:
    """Tokens that a cache must hold to be of use: one request of 8,192, or the model's longest context."""
    return min(8192, shape.context) if shape.context else 8192


def smallest(shape: ModelShape, gpu: Gpu, dtype: Dtype, kv_dtype: str) -> Plan | None:
    """The plan with the fewest GPUs that holds the model and one long request; None where 256 do not.

    Tensor parallel over powers of two within a node first, then pipeline stages of whole nodes.
    """
    widths = [n for n in (1, 2, 4, 8) if n <= gpu.gpus_per_node and shape.heads % n == 0]
    tries = [Placement(tp=n) for n in widths]
    tries += [Placement(tp=widths[-1], pp=n) for n in range(2, min(MOST_GPUS // widths[-1], shape.layers) + 1)]
    for placement in tries:
        layout = plan(shape, gpu, dtype, kv_dtype, placement)
        if layout.pool_tokens >= least_tokens(shape):
            return layout
    return None


def fitting(shape: ModelShape, gpu: Gpu, dtype: Dtype, kv_dtype: str, placement: Placement, model: str) -> Plan:
    """The plan of a placement that fits.

    Raises:
        DoesNotFitError: it does not; the message has the sizes and the smallest number of GPUs that would do.
    """
    layout = plan(shape, gpu, dtype, kv_dtype, placement)
    if layout.pool_tokens >= least_tokens(shape):
        return layout
    gpus = f"{placement.gpus} x {gpu.title}" if placement.gpus > 1 else f"one {gpu.title}"
    least = smallest(shape, gpu, dtype, kv_dtype)
    if least is None:
        advice = f"no number of GPUs up to {MOST_GPUS} would do"
    else:
        options = "".join(
            f" --{name} {n}" for name, n in (("tp", least.placement.tp), ("pp", least.placement.pp)) if n > 1
        )
        advice = (
            f"{least.placement.gpus} would do:{options or ' --tp 1'} ({least.weights_gb:.1f} GB of weights on each,"
            f" {least.pool_tokens:,.0f} tokens of cache)"
        )
    room = (
        f"leave {layout.room_gb:.1f} GB of {gpu.memory_gb:g} for the KV cache, {layout.pool_tokens:,.0f} tokens"
        if layout.room_gb > 0
        else f"exceed its {gpu.memory_gb:g} GB"
    )
    raise DoesNotFitError(
        f"{model} in {dtype.name} does not fit {gpus}: {layout.weights_gb:.1f} GB of weights on each and"
        f" {layout.runtime_gb:.1f} GB of runtime {room}; wanted is room for {least_tokens(shape):,.0f} tokens. {advice}"
    )
