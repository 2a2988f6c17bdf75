"""The configuration of a model: `ModelConfig`, `MemoryConfig`, `CMSConfig`."""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Literal

from titans_jax.memory import IMPLEMENTATIONS, PRESETS, Memory, Rule, miras, unit_clip, unit_rate
from titans_jax.memory.presets import GATES, GateStyle
from titans_jax.memory.tnt import tnt
from titans_jax.nearest import require_known
from titans_jax.nn.checks import check_types, positive

BLOCKS = ("lmm", "mac", "mag", "mal", "transformer", "hope", "hope_attention")
MEMORY_BLOCKS = ("lmm", "mac", "mag", "mal")
OPTIONS = ("depth", "expansion", "window", "degree", "writes", "to_origin")
CMS_BLOCKS = ("hope", "hope_attention")


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """A layer's neural memory."""

    rule: str = "titans"
    """a name in titans_jax.memory.PRESETS, or MODULE:FUNCTION: a function of your own, from head_dim to a Rule"""
    depth: int | None = None
    """layers of the memory network; None, here and below, is the rule's default"""
    expansion: int | None = None
    """hidden size of the memory network divided by its input size"""
    window: int | None = None
    """tokens of the Omega window"""
    degree: int | None = None
    """degree of the feature map"""
    writes: int | None = None
    """key-value pairs written for each token"""
    chunk: int = 64
    """tokens of a chunk: gradients are taken at the weights of its start, so it is part of the mathematics"""
    clip: float | None = 1.0
    """the largest change of a head's memory in one chunk, in units of titans_jax.memory.unit_clip; None for no limit,
    as in the papers"""
    heads: int = 4
    """memories of a layer, one for each head"""
    head_dim: int = 64
    """size of a head's keys and values"""
    conv: int = 4
    """width of the causal convolution on queries, keys and values; 0 for none"""
    channel_keep: bool | None = None
    """one decay for each channel, intended for chunk 16; None follows the rule's paper"""
    relative_read: bool = True
    """read what was learned, M(W_t; q) - M(W_0; q); false is the paper's read, M(W_t; q), which hope has always"""
    sized_values: bool = True
    """give values the norm sqrt(head_dim), that of a normed memory's output; false leaves them as projected"""
    max_rate: float | None = None
    """the largest test-time rate, in units of titans_jax.memory.unit_rate of one token; rates start at half of it; None
    for 4 where the memory's output is layer-normed, and 1 where a larger step would make it large"""
    momentum: float = 0.5
    """initial value of the momentum gates"""
    forget: float = 1 / 256
    """initial value of the forget gates, 1 - keep"""
    to_origin: bool | None = None
    """whether a deep memory decays to its learned initial weights (None, true) or to zero, as in the paper (false)"""
    frozen: bool = False
    """hope: whether the memories that make keys, values and gates keep their initial weights"""
    local_chunks: tuple[int, ...] = ()
    """TNT: the chunk of each local memory; their reads are added to this memory's. () for no TNT"""
    shard: int = 64
    """TNT: tokens between two resets of the local memories"""
    implementation: str | None = None
    """exact, delta, chunked or recurrent; None chooses the fastest that serves the rule"""
    matmul_dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the factors of a chunk's products; sums and states are float32"""

    @property
    def gates(self) -> GateStyle:
        """How the gates are made."""
        style = GATES.get(self.rule, GateStyle())
        return style if self.channel_keep is None else style._replace(keep="channel" if self.channel_keep else "scalar")

    @property
    def per_channel(self) -> bool:
        """Whether a token's keep is a vector."""
        return self.gates.keep == "channel"

    @property
    def options(self) -> dict[str, Any]:
        """The rule's options that are not None."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True)
class CMSConfig:
    """HOPE's continuum memory system, which replaces a layer's MLP and is trained at test time."""

    periods: tuple[int, ...] = (64, 256)
    """tokens between two updates of each level, multiples of the smallest; 0 for a level that is not updated"""
    variant: Literal["sequential", "nested", "independent"] = "sequential"
    """a chain of levels; a chain in which an update of a level resets the level before it; or a sum of levels"""
    rate: float = 0.01
    """test-time learning rate, of a loss summed over tokens; 0 for no test-time updates"""
    clip: float | None = 1.0
    """largest gradient norm of a level's update, over all layers; None for no limit"""
    first_order: bool = False
    """whether training treats the test-time gradients as constants"""

    def check(self) -> None:
        """Raise ValueError, in one line, for invalid values."""
        if not self.periods or min(self.periods) < 0:
            raise ValueError(f"model.cms.periods: {self.periods}; give each level a number of tokens, 0 or more")
        active = [period for period in self.periods if period]
        if any(period % min(active) for period in active):
            raise ValueError(f"model.cms.periods: {self.periods} are not all multiples of the smallest, {min(active)}")
        if self.rate < 0:
            raise ValueError(f"model.cms.rate: {self.rate}; it must be 0 or more")
        if self.clip is not None:
            positive("model.cms.clip", self.clip)


def preset_of(name: str) -> Callable[..., Rule]:
    """The function that makes a rule. Raises ValueError for an unknown name, or MODULE:FUNCTION that is not there."""
    module, is_own, function = name.partition(":")
    if not is_own:
        require_known("model.memory.rule", name, PRESETS)
        return PRESETS[name]
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model.memory.rule: {name!r}: {error}; is its folder on PYTHONPATH?") from None


def rule_of(config: MemoryConfig) -> Rule:
    """The rule of a configuration. Raises ValueError for an unknown rule, and an option that the rule does not take."""
    preset = preset_of(config.rule)
    takes = [name for name in OPTIONS if name in inspect.signature(preset).parameters]
    for name in config.options:
        if name not in takes:
            known = ", ".join(takes) or "none"
            raise ValueError(f"model.memory.{name}: {config.rule} has no such option; its options: {known}")
    defaults = {"to_origin": True} if "to_origin" in takes else {}
    return preset(config.head_dim, **defaults | config.options)._replace(relative=config.relative_read)


def memory_of(config: MemoryConfig) -> Memory:
    """The pure functions of a layer's memory, for one sequence and one head. Raises what `miras` and `tnt` raise."""
    c = config
    make = functools.partial(tnt, local_chunks=c.local_chunks, shard=c.shard) if c.local_chunks else miras
    clip = clip_of(c)
    return make(rule_of(c), chunk=c.chunk, clip=clip, implementation=c.implementation, matmul_dtype=c.matmul_dtype)


def max_rate_of(config: MemoryConfig) -> float:
    """The largest rate of a token."""
    rule = rule_of(config)
    units = config.max_rate
    if units is None:
        units = 4.0 if rule.architecture.normed and rule.learner.orthogonalise is None else 1.0
    return units * unit_rate(rule, min((config.chunk, *config.local_chunks)), equal=1)


def clip_of(config: MemoryConfig) -> float | None:
    """The largest Frobenius norm of a chunk's change, or None."""
    return None if config.clip is None else config.clip * unit_clip(rule_of(config), config.chunk, config.head_dim)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The configuration of a language model."""

    block: str = "mac"
    """lmm, mac, mag, mal, transformer, hope or hope_attention; or a repeating pattern of them: transformer,mac"""
    vocab_size: int = 256
    """tokens of the vocabulary"""
    dim: int = 256
    """model width"""
    depth: int = 4
    """layers, a multiple of the pattern's length"""
    heads: int = 4
    """attention heads"""
    head_dim: int = 64
    """size of an attention head, independent of dim / heads"""
    ff_mult: float = 8 / 3
    """hidden size of the SwiGLU divided by dim"""
    attention: Literal["full", "sliding", "segmented"] = "sliding"
    """attention of transformer, mag, mal and hope_attention layers; mac attends inside its segments"""
    window: int = 256
    """tokens that sliding attention sees, the newest included"""
    segment: int = 64
    """tokens of a segment, for mac and segmented attention"""
    context: int = 2048
    """tokens that full attention caches; number of learned positions"""
    persistent: int = 4
    """persistent tokens of each layer"""
    positions: Literal["rope", "axial", "learned", "none"] = "rope"
    """rotary positions in attention; or continuous axial or learned positions added to the embedding; or none"""
    value_residual: bool = False
    """mix the first attention layer's values into the values of later layers"""
    weight_residual: bool = False
    """take a layer's test-time gradients at weights shifted by what the memory below has learned"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype of activations; parameters, memory states and gates are float32"""
    remat: bool = False
    """recompute a layer's activations in the backward pass"""
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    """the layers' memory"""
    cms: CMSConfig = dataclasses.field(default_factory=CMSConfig)
    """the MLPs of hope and hope_attention layers"""

    @property
    def pattern(self) -> tuple[str, ...]:
        """The blocks that repeat."""
        return tuple(self.block.split(","))

    @property
    def repeats(self) -> int:
        """The number of repetitions of the pattern."""
        return self.depth // len(self.pattern)

    @property
    def attends(self) -> bool:
        """Whether any layer uses `attention`; MAC does not."""
        return bool({"transformer", "mag", "mal", "hope_attention"} & set(self.pattern))

    @property
    def grows(self) -> bool:
        """Whether the size of the state grows with `context`."""
        return self.attends and self.attention == "full"

    @property
    def learns_inside(self) -> bool:
        """Whether layers' MLPs are trained at test time; see `nn.inner_loop`."""
        return any(name in CMS_BLOCKS for name in self.pattern) and self.cms.rate > 0 and any(self.cms.periods)

    def check(self) -> None:
        """Raise ValueError, in one line, for invalid values."""
        memory = self.memory
        for where, config in (("model", self), ("model.memory", memory), ("model.cms", self.cms)):
            check_types(where, config)
        for name in self.pattern:
            require_known("model.block", name, BLOCKS)
        if memory.implementation is not None:
            require_known("model.memory.implementation", memory.implementation, IMPLEMENTATIONS)
        for field in ("vocab_size", "dim", "depth", "heads", "head_dim", "window", "segment", "context", "ff_mult"):
            positive(f"model.{field}", getattr(self, field))
        for field in ("chunk", "heads", "head_dim", "shard"):
            positive(f"model.memory.{field}", getattr(memory, field))
        for field, value in memory.options.items():
            if field != "to_origin":
                positive(f"model.memory.{field}", value, 1 << 16 if field == "window" else 256)
        for local in memory.local_chunks:
            positive("model.memory.local_chunks", local)
        rule_of(memory)
        for field in ("momentum", "forget"):
            if not 0 < getattr(memory, field) < 1:
                raise ValueError(f"model.memory.{field}: {getattr(memory, field)} is not between 0 and 1")
        for field in ("clip", "max_rate"):
            if (value := getattr(memory, field)) is not None:
                positive(f"model.memory.{field}", value)
        if self.persistent < 0 or memory.conv < 0:
            raise ValueError("model.persistent and model.memory.conv must be 0 or more")
        for field, value in (("model.persistent", self.persistent), ("model.memory.conv", memory.conv)):
            if value:
                positive(field, value, 1 << 16)
        if self.depth % len(self.pattern):
            raise ValueError(
                f"model.depth: {self.depth} is not a multiple of {len(self.pattern)}, the blocks of {self.block!r}"
            )
        if "mac" in self.pattern and self.segment % memory.chunk:
            raise ValueError(f"model.segment: {self.segment} is not a multiple of model.memory.chunk {memory.chunk}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"model.head_dim: {self.head_dim} is odd; rotary positions rotate pairs of channels")
        if memory.local_chunks and (memory.chunk % memory.shard or any(memory.shard % c for c in memory.local_chunks)):
            sizes = f"{memory.chunk}, shard {memory.shard} and local_chunks {memory.local_chunks}"
            raise ValueError(f"model.memory.chunk: {sizes} must each be a multiple of the next")
        if memory.local_chunks and (self.weight_residual or "hope" in self.pattern):
            raise ValueError("model.memory.local_chunks: TNT works neither with model.weight_residual nor in hope")
        if "hope" in self.pattern and memory.per_channel:
            raise ValueError("model.memory.channel_keep: hope has one decay per head")
        if memory.frozen and "hope" not in self.pattern:
            raise ValueError(f"model.memory.frozen: only for hope, not for {self.block!r}")
        if set(self.pattern) & {*MEMORY_BLOCKS, "hope"}:
            try:
                memory_of(memory)
            except (ValueError, NotImplementedError) as reason:
                raise ValueError(f"model.memory: {memory.rule} cannot run with these options: {reason}") from None
        self.cms.check()
        if self.weight_residual and len({b for b in self.pattern if b in MEMORY_BLOCKS}) != 1:
            raise ValueError(f"model.weight_residual: needs memory layers of one type, not {self.block!r}")
        if self.weight_residual and rule_of(memory).learner.grad_at != "chunk_start":
            raise ValueError(f"model.weight_residual: {memory.rule} takes no gradients at the chunk start")
