"""The sections of a config, one model each. Keys of a plug-in go into its section's `options`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from actors.fail_points import Point

Codec = Literal["fp32", "bf16", "fp16", "int8"]
_ONE, _SEVERAL = "literal[codec]", "dict[str,codec]"
"""How pydantic calls the forms of `wire` in the paths of its errors, which leave such names out."""
Codecs = Annotated[
    Annotated[Codec, Tag(_ONE)] | Annotated[dict[str, Codec], Tag(_SEVERAL)],
    Discriminator(lambda value: _SEVERAL if isinstance(value, dict) else _ONE),
]
"""One codec, or codecs by kind and edge."""


class Section(BaseModel):
    """Base: frozen, and closed unless `collects_options` is set."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)
    collects_options: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _collect_options(cls, values: Any) -> Any:
        """Move keys that belong to the chosen plug-in into `options`, where the catalog's model checks them."""
        if not cls.collects_options or not isinstance(values, dict):
            return values
        if not isinstance(values.get("options", {}), dict):
            return values  # refused as it stands
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        foreign = {key: value for key, value in values.items() if key not in cls.model_fields}
        return own | ({"options": {**own.get("options", {}), **foreign}} if foreign else {})


class DataSection(Section):
    """What is learned from."""

    collects_options = True

    name: str | None = None
    """A data set: digits, fashion_mnist, mnist, cifar10, image_folder, generated."""
    factory: str | None = None
    """package.module:function that returns a map-style Dataset."""
    root: str | None = None
    """Folder that holds the data."""
    limit: int | None = Field(default=None, ge=1)
    """Train on this many samples only."""
    validation: float = Field(default=0.0, ge=0)
    """Part of the training set that is held out: a fraction below 1, or a number of samples."""
    batch_size: int = Field(default=128, ge=1)
    """Samples in a batch."""
    workers: int = Field(default=0, ge=0)
    """Processes that prepare batches; 0: the data actor itself."""
    augment: bool | list[str] = False
    """Random crops and flips: true for those usual for the data set, or a list such as [crop:4, flip]."""
    options: dict[str, Any] = {}


class NetworkSection(Section):
    """What is trained, and where it is cut into blocks."""

    collects_options = True

    name: str | None = None
    """A network: mlp, cnn, vgg, resnet, torchvision_model."""
    factory: str | None = None
    """package.module:function that returns an nn.Module."""
    blocks: int | Literal["auto"] | None = None
    """Number of blocks, cut evenly; auto: cut where measured times say, which `cuts` of the run's config then names."""
    num_blocks: int | None = Field(default=None, ge=1)
    """With blocks: auto, how many; default: one per core of this machine, or per GPU if blocks ask for them."""
    cuts: list[str] | None = None
    """Layers that each start a new block."""
    weights: str | None = None
    """A .safetensors file to start from."""
    options: dict[str, Any] = {}


class PluginSection(Section):
    """A rule or an objective, by name or by factory; `default_name` holds where neither key is given."""

    collects_options = True
    default_name: ClassVar[str]

    name: str | None = None
    factory: str | None = None
    """package.module:Class of your own."""
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "name" in values or "factory" in values:
            return values
        return {"name": cls.default_name, **values}


class RuleSection(PluginSection):
    """How a block turns credit into gradients."""

    default_name = "local"


class ObjectiveSection(PluginSection):
    """What a block optimises."""

    default_name = "cross_entropy"


class ScheduleSection(Section):
    """When a block may work."""

    name: Literal["pipeline", "lockstep", "sequential", "replay"] = "pipeline"
    """pipeline: first in, first out; lockstep: one batch in the whole chain at a time; sequential: one block after
    another, earlier ones frozen."""
    delay_per_hop: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Feedback of h hops is handled 1 + floor(delay_per_hop * h) batches later."""
    input_delay: int | None = Field(default=None, ge=1)
    late: Literal["stash", "recompute"] | None = None
    """What late gradients meet: the weights of their forward pass, or a second pass with those of the day; default
    stash."""
    feedback: Literal["fixed", "as_it_arrives"] = "fixed"


class BuffersSection(Section):
    """How much may wait on an edge."""

    mode: Literal["fixed", "auto"] = "fixed"
    """auto: the orchestrator sizes every buffer from measured waits, beginning with the capacity."""
    capacity: int = Field(default=4, ge=1)
    """Messages that may wait on an edge."""
    budget_bytes: int | None = Field(default=None, ge=1)
    """With mode auto: bytes that all buffers together may hold; default 256 MiB."""
    window: int | None = Field(default=None, ge=1)
    """Calls a consumer keeps outstanding while little has arrived; default 1."""
    capacity_bytes: int | None = Field(default=None, ge=1)
    """Bytes that a replay buffer may hold; one message may always be held."""
    order: Literal["fifo", "lifo", "uniform", "least_used"] | None = None
    """Which message of a replay buffer is trained on next; default least_used, the newest of those."""
    max_reuse: int | None = Field(default=None, ge=1)
    """Uses of a message; default 1 where a full buffer blocks, else as often as it is there."""
    on_full: Literal["block", "drop_oldest", "drop_newest"] | None = None
    """What a full replay buffer does; default block: its producer waits."""
    samples_per_insert: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Uses that go with one arrival on average."""
    tolerance: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How far uses and arrivals may be apart from that, in uses."""


class StalenessSection(Section):
    """How old an activation may be when a block starts to train on it."""

    max: int | None = Field(default=None, ge=0)
    """Versions that its producer may have finished since; kept by pacing the producer. None: no bound."""


class SlowSection(Section):
    """A block on a slow device."""

    block: int = Field(ge=0)
    factor: float = Field(ge=1, allow_inf_nan=False)
    """How many times longer its computing lasts."""


class KillSection(Section):
    """A process that dies by SIGKILL at a logical point, to see that nothing is lost."""

    actor: str
    """block0, block1, ..., source, or orchestrator."""
    at: Point = "step"
    """step: before a batch is trained on; snapshot: when it is taken; half written, before rename, written: of a file
    of a checkpoint; restored: when another life has read its snapshot; pruning, half pruned: before old checkpoints are
    deleted, and after the first (the orchestrator's)."""
    batch: int | None = Field(default=None, ge=0)
    """Batch id or position; default: the first time that the place is reached."""
    lives: int = Field(default=1, ge=1)
    """How many lives of the actor die so."""


class FaultsSection(Section):
    """Simulated trouble: computing that lasts longer than this processor needs, processes that die."""

    slow: list[SlowSection] = []
    pad: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Every block's computing lasts this many times longer, and rests meanwhile: simulated devices."""
    jitter: float = Field(default=0.0, ge=0, le=3)
    """Relative spread of a step's length, which is never less than its computing takes: use it with a pad."""
    kill: list[KillSection] = []
    """Processes that die."""


class RateScheduleSection(Section):
    """How the learning rate changes."""

    name: Literal["constant", "cosine", "step"] = "constant"
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs over which the rate rises from 0."""
    milestones: list[float] = []
    """For step: the epochs at which the rate is multiplied by gamma."""
    gamma: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _step_has_milestones(self) -> RateScheduleSection:
        if self.name == "step" and not self.milestones:
            raise ValueError("expected milestones, the epochs at which the rate steps down")
        return self


class OptimizerSection(Section):
    """An optimizer of torch.optim for every block; its own arguments stand beside `lr`."""

    collects_options = True

    name: str = "sgd"
    lr: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """Learning rate."""
    schedule: RateScheduleSection = RateScheduleSection()
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of a parameter group's gradient, per block."""
    heads: dict[str, Any] = {}
    """Other settings for auxiliary heads."""
    synthesizer: dict[str, Any] = {}
    """Other settings for what a rule itself learns."""
    blocks: dict[int, dict[str, Any]] = {}
    """Other settings for a block, by its index."""
    options: dict[str, Any] = {}


class TrainingSection(Section):
    """How long and how exactly."""

    epochs: int = Field(default=5, ge=1)
    """Passes over the training data; under the schedule sequential, for each block."""
    accumulate: int = Field(default=1, ge=1)
    """Batches per optimizer step."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    """Compile every layer with torch.compile."""
    channels_last: bool = False
    """Keep images channel by channel in memory; faster for convolutions on most processors."""
    deterministic: bool = True
    """Use deterministic algorithms only."""


class EvaluationSection(Section):
    """When the network is evaluated during training; it always is at the end."""

    every_batches: int | None = Field(default=None, ge=1)
    every_epochs: int | None = Field(default=None, ge=0)
    """Default 1 unless every_batches is given; 0: only at the end."""
    batch_size: int | None = Field(default=None, ge=1)
    """Samples in an evaluation batch; default: data.batch_size."""
    splits: list[Literal["test", "validation"]] = ["test", "validation"]
    """What is evaluated, of the splits that the data has; []: nothing."""

    @model_validator(mode="after")
    def _one_interval(self) -> EvaluationSection:
        if self.every_batches is not None and self.every_epochs is not None:
            raise ValueError("expected every_batches or every_epochs, not both")
        return self


class BlockPlacementSection(Section):
    """What one block asks for instead of what all do; a key that is left out stays as it is for all.

    `gpus: 0` leaves their `accelerator_type` out, too.
    """

    cpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    gpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    accelerator_type: str | None = None
    labels: dict[str, str] | None = None
    resources: dict[str, float] | None = None

    @model_validator(mode="after")
    def _whole_gpus(self) -> BlockPlacementSection:
        _check_whole_gpus("gpus", self.gpus or 0.0)
        return self


def _check_whole_gpus(key: str, gpus: float) -> None:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"expected {key} below 1 or a whole number")


class PlacementSection(Section):
    """Where the blocks run."""

    backend: Literal["ray", "in_process"] = "ray"
    gpus_per_block: float = Field(default=0.0, ge=0)
    """A fraction lets several blocks share one."""
    cpus_per_block: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """auto: one, or an equal share of the CPUs that are there when the run starts."""
    threads: int = Field(default=1, ge=1)
    """Threads of a block's arithmetic."""
    pin_cpus: bool = False
    """Each block keeps to cores of its own, as many as it has threads, while its node has free ones."""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Neighbours on few nodes, or on many."""
    accelerator_type: str | None = None
    """Kind of GPU, as Ray names it."""
    labels: dict[str, str] = {}
    """Labels of the nodes that may host a block, as Ray's label selectors say them."""
    resources: dict[str, float] = {}
    """Custom resources of Ray that each block takes."""
    blocks: dict[int, BlockPlacementSection] = {}
    """Other settings for a block, by its index."""
    wait_s: float = Field(default=600.0, ge=0, allow_inf_nan=False)
    """Longest wait for a cluster's resources, with a line every 30 s."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Longest an actor waits on one edge without a message."""
    object_store_bytes: int | None = Field(default=None, ge=78_643_200)
    """Size of a local cluster's object store."""
    blocks_per_actor: int | None = Field(default=None, ge=1)
    """Neighbouring blocks that share a process, each with a thread of its own; default 1. Resources add up."""
    same_node: Literal["object_store", "socket"] = "object_store"
    """What messages between two processes of a node travel through; with `socket` headers do, and large tensors lie in
    memory that the consumer lends."""
    device_transport: Literal["host", "rdt"] = "host"
    """What large tensors travel through: the host's memory, or straight from one memory to the other (Ray Direct
    Transport over NIXL, which is alpha)."""
    rebalance: bool = False
    """Blocks that had to go elsewhere when a node was lost, or share another's since, move to nodes that come."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> PlacementSection:
        _check_whole_gpus("gpus_per_block", self.gpus_per_block)
        return self


class CheckpointSection(Section):
    """When consistent snapshots of all blocks are taken, and where they go; training does not stop for them."""

    every_batches: int | None = Field(default=None, ge=1)
    every_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Default over Ray 60, unless every_batches is given; 0: only when asked for and at the end."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that stay."""
    uri: str | None = None
    """A folder, or an address that fsspec knows, such as s3://bucket/runs; default: the run directory."""

    @model_validator(mode="after")
    def _one_interval(self) -> CheckpointSection:
        if self.every_batches is not None and self.every_s is not None:
            raise ValueError("expected every_batches or every_s, not both")
        return self


class RecoverySection(Section):
    """What happens when a process dies or hangs."""

    mode: Literal["local", "global", "none"] | None = None
    """local: the lost block goes on from the last checkpoint while the others keep training; global: all return to
    it; none: the run ends. Default: local over Ray, none in process."""
    max_failures: int = Field(default=3, ge=0)
    """Lost processes after which the run ends."""
    max_preemptions: int | None = Field(default=None, ge=0)
    """Actors that leave nodes which announced their end, counted apart; default: any number."""
    backoff_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Waited before an actor is replaced; doubled with each further failure of the same actor."""
    step_deadline_s: float | Literal["auto"] = "auto"
    """Longest step before an actor counts as hung; auto: 20 median steps, at least 60 s."""
    retention_bytes: int = Field(default=512 * 1024**2, ge=1)
    """What an actor may keep for others to take again; the source waits for a checkpoint before more piles up."""
    spares: int = Field(default=0, ge=0)
    """Warm processes that wait to replace a lost one."""


class RunConfig(Section):
    """Everything a run is made of."""

    run_dir: str | None = None
    seed: int = Field(default=0, ge=0)
    data: DataSection = DataSection()
    network: NetworkSection = NetworkSection()
    rule: RuleSection = RuleSection()
    objective: ObjectiveSection = ObjectiveSection()
    schedule: ScheduleSection = ScheduleSection()
    buffers: BuffersSection = BuffersSection()
    staleness: StalenessSection = StalenessSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    placement: PlacementSection = PlacementSection()
    checkpoint: CheckpointSection = CheckpointSection()
    recovery: RecoverySection = RecoverySection()
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Where a number is not finite; skip: without the update of that block, or of those that get its numbers."""
    wire: Codecs | None = None
    """What activations and feedback between blocks travel as; default fp32, as they are. For both, or by the keys
    activation and feedback, or by edge, such as block0->block1."""
    faults: FaultsSection = FaultsSection()
