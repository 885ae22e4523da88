"""Meshes, logical axis rules and the partitioner that jits a function over them.

A parameter or activation names its dimensions by logical axes ("embed", "mlp", "batch", ...); rules
map those to mesh axes ("data", "model"); the mesh is made of the devices that are present. One
function, `PjitPartitioner.partition`, turns all of that into a `jax.jit` with NamedShardings under
`jax.set_mesh`, so that sharding constraints inside the model take effect.
"""

import contextlib
import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from flax.linen import partitioning as flax_partitioning
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x.run import former_names
from t5x.run.console import log_ignored

if typing.TYPE_CHECKING:
    from t5x.train_state import TrainState

HardwareMesh = tuple[int, ...]
LogicalAxisRules = Sequence[tuple[str, str | tuple[str, ...] | None]]
PyTree = Any


class AxisNames(tuple):
    """The logical axis names of one array; a tuple that JAX does not take for a pytree node."""

    __slots__ = ()

    def __new__(cls, *names: str | None) -> "AxisNames":
        return tuple.__new__(cls, names)

    def __repr__(self) -> str:
        return f"AxisNames{tuple.__repr__(self)}"


# A registered pytree node is matched by exact type, so a tuple subclass is a leaf already.


def _bounds(devices: Sequence[jax.Device]) -> HardwareMesh:
    """Extent of a set of devices: (x, y, z, core) on TPU, (processes, devices) elsewhere."""
    coordinates = np.array([_coordinates(device) for device in devices])
    return tuple(int(extent) for extent in coordinates.max(axis=0) - coordinates.min(axis=0) + 1)


def _coordinates(device: jax.Device) -> tuple[int, ...]:
    coords = getattr(device, "coords", None)
    if coords is not None:
        return (*coords, device.core_on_chip)
    return (device.process_index, device.id % max(1, jax.local_device_count()))


def get_mesh(
    model_parallel_submesh: HardwareMesh,
    input_devices: Sequence[jax.Device] = (),
    input_local_devices: Sequence[jax.Device] = (),
    tile_by_host_if_needed: bool = True,
    backend: str | None = None,
) -> Mesh:
    """Mesh ("data", "model") in which "model" covers one tile of the physical device grid.

    Args:
      model_parallel_submesh: tile of the grid that holds one replica of the model, (x, y, z, core)
        on TPU; each entry must divide the grid's.
      input_devices: devices to use; all of `backend` when empty.
      input_local_devices: accepted for compatibility; JAX no longer needs it.
      tile_by_host_if_needed: accepted for compatibility; any device order can now be sharded.
      backend: platform whose devices are used when `input_devices` is empty.

    Raises:
      ValueError: the tile does not divide the grid.
    """
    if input_local_devices or not tile_by_host_if_needed:
        log_ignored("get_mesh.input_local_devices and tile_by_host_if_needed")
    devices = list(input_devices) or jax.devices(backend)
    grid = _bounds(devices)
    tile = tuple(model_parallel_submesh)[: len(grid)]
    tile += (1,) * (len(grid) - len(tile))
    if math.prod(tile) != math.prod(model_parallel_submesh) or any(
        extent % size for extent, size in zip(grid, tile, strict=True)
    ):
        raise ValueError(
            f"PjitPartitioner.model_parallel_submesh = {tuple(model_parallel_submesh)} does not "
            f"divide the device grid {grid}; choose a divisor in every dimension"
        )
    origin = np.array([_coordinates(device) for device in devices]).min(axis=0)
    array = np.empty(grid, dtype=object)
    for device in devices:
        array[tuple(np.array(_coordinates(device)) - origin)] = device
    # (x, y, …) → (x/mx, mx, y/my, my, …) → data dimensions first, the tile's last.
    split = [
        part for extent, size in zip(grid, tile, strict=True) for part in (extent // size, size)
    ]
    order = [*range(0, len(split), 2), *range(1, len(split), 2)]
    return Mesh(
        array.reshape(split).transpose(order).reshape(-1, math.prod(tile)), ("data", "model")
    )


def default_mesh(
    num_partitions: int,
    model_parallel_submesh: HardwareMesh | None = None,
    backend: str | None = None,
    ici_mesh_shape: HardwareMesh | None = None,
    dcn_mesh_shape: HardwareMesh | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The mesh for `num_partitions`-way model parallelism over the devices that are present.

    Args:
      num_partitions: size of the "model" axis; ignored when a submesh is given.
      model_parallel_submesh: see `get_mesh`.
      backend: platform; JAX's default when None.
      ici_mesh_shape: (replica, data, model) within a slice, with `dcn_mesh_shape` across slices.
      dcn_mesh_shape: see `ici_mesh_shape`; their product is the mesh ("replica", "data", "model").
      devices: the devices to use, those of a topology for example; all of `backend` when None.

    Raises:
      ValueError: the number of devices cannot be split so.
    """
    devices = jax.devices(backend) if devices is None else devices
    if ici_mesh_shape is not None and dcn_mesh_shape is not None:
        array = mesh_utils.create_hybrid_device_mesh(
            ici_mesh_shape,
            dcn_mesh_shape,
            devices=devices,
            # Only TPU devices know their slice; elsewhere a process stands for one.
            process_is_granule=devices[0].platform != "tpu",
        )
        return Mesh(array, ("replica", "data", "model"))
    if model_parallel_submesh:
        return get_mesh(model_parallel_submesh, devices)
    if len(devices) % num_partitions:
        raise ValueError(
            f"PjitPartitioner.num_partitions = {num_partitions} does not divide the "
            f"{len(devices)} devices present; choose a divisor of {len(devices)}"
        )
    shape = (len(devices) // num_partitions, num_partitions)
    try:
        array = mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        # No product of sides of the physical grid is num_partitions: a side is split.
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, ("data", "model"))


def standard_logical_axis_rules(
    activation_partitioning_dims: int = 1,
    parameter_partitioning_dims: int = 1,
    additional_rules: LogicalAxisRules | None = None,
) -> LogicalAxisRules:
    """Logical axis rules in order of priority, upstream's four layouts.

    Args:
      activation_partitioning_dims: 1 shards activations over heads/mlp only, 2 also over embed.
      parameter_partitioning_dims: 1 replicates parameters over "data", 2 shards their "embed"
        dimension there (ZeRO-3 / FSDP).
      additional_rules: appended; an earlier rule wins.

    Raises:
      ValueError: a number of dimensions other than 1 or 2.
    """
    dims = (activation_partitioning_dims, parameter_partitioning_dims)
    embed: dict[tuple[int, int], list[tuple[str, str | None]]] = {
        (1, 1): [("embed", None)],
        (2, 1): [("embed", "model")],
        (1, 2): [("embed", "data")],
        (2, 2): [("embed", "model"), ("embed", "data")],
    }
    if dims not in embed:
        raise ValueError(
            "standard_logical_axis_rules: activation_partitioning_dims and "
            f"parameter_partitioning_dims must be 1 or 2, got {dims}"
        )
    sharded = [
        ("batch", "data"),
        ("vocab", "model"),
        ("mlp", "model"),
        ("heads", "model"),
        ("kv", None),
        ("joined_kv", "model"),
    ]
    replicated = ["relpos_buckets", "abspos_buckets", "length", "layers", "stack"]
    rules = [*sharded, *embed[dims], *((name, None) for name in (*replicated, "mlp_activations"))]
    return [*rules, *(additional_rules or ())]


def fsdp_logical_axis_rules(
    additional_rules: LogicalAxisRules | None = None,
) -> LogicalAxisRules:
    """Fully sharded data parallelism: rows, and every matrix's "embed", over all devices.

    Not in upstream. With a mesh of two axes longer than one (`num_partitions` > 1), layers gather
    their parameters along one axis after the other (`layers.gather_rows`), and so does the scatter
    of the gradients: over hundreds of devices at once the TPU compiler turns both into all-reduces
    of twice the traffic. Let the axes be those of the physical grid, as 16 × 16.

    Args:
      additional_rules: appended; an earlier rule wins.
    """
    names = ("vocab", "mlp", "heads", "kv", "joined_kv", "relpos_buckets", "abspos_buckets")
    names += ("length", "layers", "stack", "mlp_activations")
    devices = ("data", "model")
    rules = [("batch", devices), ("embed", devices), *((name, None) for name in names)]
    return [*rules, *(additional_rules or ())]


@dataclasses.dataclass(frozen=True)
class DataLayout:
    """How one process takes part in reading a global batch.

    `batch_size` examples are read as `num_shards` disjoint shards; this process reads `shard_id`.
    """

    batch_size: int
    shard_id: int
    num_shards: int
    is_first_host_in_replica_set: bool


def _mesh_axes(rule: str | Sequence[str] | None) -> tuple[str, ...]:
    return (rule,) if isinstance(rule, str) else tuple(rule or ())


class PartitionedFunction:
    """A jitted function that traces and runs under its mesh and logical axis rules."""

    def __init__(self, jitted: Callable[..., Any], context: Callable[[], Any]) -> None:
        self._jitted = jitted
        self._context = context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._context():
            return self._jitted(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """The traced computation (`jax.stages.Lowered`), from arrays or their shapes."""
        with self._context():
            return self._jitted.lower(*args, **kwargs)


class PjitPartitioner:
    """Partitions functions over the devices present by logical axis rules (upstream's name).

    Args:
      num_partitions: size of the model-parallel axis.
      model_parallel_submesh: TPU tile of the model-parallel axis; it wins over `num_partitions`.
      params_on_devices: parameters live in device memory; False is refused.
      backend: platform name, JAX's default when None.
      ici_mesh_shape: (replica, data, model) within a slice; needs `dcn_mesh_shape`.
      dcn_mesh_shape: (replica, data, model) across slices.
      logical_axis_rules: see `standard_logical_axis_rules`.

    Raises:
      ValueError: neither `num_partitions` nor `model_parallel_submesh` is given, or
        `params_on_devices` is False.

    Attributes:
      devices: set before the mesh is first used, the mesh is made of these rather than of the
        devices present, to compile for machines that are elsewhere.
    """

    devices: Sequence[jax.Device] | None = None

    def __init__(
        self,
        num_partitions: int | None = None,
        model_parallel_submesh: HardwareMesh | None = None,
        params_on_devices: bool = True,
        backend: str | None = None,
        ici_mesh_shape: HardwareMesh | None = None,
        dcn_mesh_shape: HardwareMesh | None = None,
        logical_axis_rules: LogicalAxisRules | None = None,
    ) -> None:
        multi_slice = ici_mesh_shape is not None and dcn_mesh_shape is not None
        if not (multi_slice or num_partitions or model_parallel_submesh):
            raise ValueError("PjitPartitioner: bind num_partitions or model_parallel_submesh")
        if not multi_slice and num_partitions and model_parallel_submesh:
            # Upstream's run files bind num_partitions = 1, a submesh is bound on top of them.
            log_ignored(
                f"PjitPartitioner.num_partitions = {num_partitions}",
                f"model_parallel_submesh = {tuple(model_parallel_submesh)} says it",
            )
        if not params_on_devices:
            raise ValueError(
                "PjitPartitioner.params_on_devices = False is not supported; remove it"
            )
        self._num_partitions = num_partitions
        self._model_parallel_submesh = model_parallel_submesh
        self._backend = backend
        self._ici_mesh_shape = ici_mesh_shape
        self._dcn_mesh_shape = dcn_mesh_shape
        rules = standard_logical_axis_rules() if logical_axis_rules is None else logical_axis_rules
        if multi_slice:
            rules = [
                (name, ("replica", *_mesh_axes(axis)) if name == "batch" else axis)
                for name, axis in rules
            ]
        self._logical_axis_rules = tuple(rules)
        (self._data_axis,) = flax_partitioning.logical_to_mesh_axes(
            ("batch",), self._logical_axis_rules
        )

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The device mesh; its first use asks JAX for the devices."""
        return default_mesh(
            self._num_partitions or 1,
            self._model_parallel_submesh,
            self._backend,
            self._ici_mesh_shape,
            self._dcn_mesh_shape,
            self.devices,
        )

    @property
    def logical_axis_rules(self) -> LogicalAxisRules:
        """Rules in order of priority."""
        return self._logical_axis_rules

    @property
    def use_shardy_partitioner(self) -> bool:
        """Whether JAX lowers shardings through Shardy."""
        return jax.config.jax_use_shardy_partitioner

    @property
    def params_on_devices(self) -> bool:
        """Always True: parameters live in device memory."""
        return True

    @property
    def data_partition_spec(self) -> PartitionSpec:
        """Sharding of a batch: its first dimension over the data axes."""
        return PartitionSpec(self._data_axis)

    @property
    def data_mesh_size(self) -> int:
        """Number of device groups that hold different examples."""
        return math.prod(self.mesh.shape[axis] for axis in _mesh_axes(self._data_axis))

    def get_data_layout(
        self, batch_size: int | None = None, host_index: int | None = None
    ) -> DataLayout:
        """The part of a global batch that this process reads.

        Processes whose devices hold the same examples (model parallelism across processes) get the
        same shard.

        Raises:
          ValueError: `batch_size` is not divisible by the data axes of the mesh.
          NotImplementedError: `host_index` is given.
        """
        if host_index is not None:
            raise NotImplementedError("get_data_layout: host_index must be None")
        batch_size = batch_size or self.data_mesh_size
        if batch_size % self.data_mesh_size:
            raise ValueError(
                f"BATCH_SIZE = {batch_size} is not divisible by the {self.data_mesh_size} data "
                f"shards of the mesh {dict(self.mesh.shape)}; use a multiple of "
                f"{self.data_mesh_size} or change PjitPartitioner.num_partitions"
            )
        sharding = NamedSharding(self.mesh, self.data_partition_spec)
        rows: dict[int, set[int]] = {}
        for device, (index,) in sharding.devices_indices_map((batch_size,)).items():
            start = index.start or 0
            rows.setdefault(device.process_index, set()).add(start)
        shards = sorted({tuple(sorted(starts)) for starts in rows.values()})
        mine = tuple(sorted(rows[jax.process_index()]))
        shard_id = shards.index(mine)
        first = min(process for process, starts in rows.items() if tuple(sorted(starts)) == mine)
        return DataLayout(
            batch_size=batch_size,
            shard_id=shard_id,
            num_shards=len(shards),
            is_first_host_in_replica_set=first == jax.process_index(),
        )

    def get_logical_axes(self, train_state: "TrainState") -> "TrainState":
        """The train state with AxisNames (or None: replicated) in place of arrays."""
        return train_state.as_logical_axes()

    def get_mesh_axes(self, train_state: "TrainState") -> "TrainState":
        """The train state with PartitionSpecs in place of arrays.

        Raises:
          ValueError: a logical axis has no rule.
        """
        logical_axes = self.get_logical_axes(train_state)
        empty = flax.traverse_util.empty_node

        def to_mesh_axes(name: str, axes: AxisNames | None) -> PartitionSpec | None:
            if axes is None or axes is empty:
                return axes
            try:
                return flax_partitioning.logical_to_mesh_axes(axes, self._logical_axis_rules)
            except ValueError as error:
                raise ValueError(
                    f"PjitPartitioner.logical_axis_rules cannot shard {name} with axes {axes}: "
                    f"{error}"
                ) from error

        flat = flax.traverse_util.flatten_dict(
            logical_axes.state_dict(), keep_empty_nodes=True, sep="/"
        )
        mesh_axes = {name: to_mesh_axes(name, axes) for name, axes in flat.items()}
        return logical_axes.restore_state(flax.traverse_util.unflatten_dict(mesh_axes, sep="/"))

    def shardings(self, axes: PyTree) -> PyTree:
        """NamedShardings for a pytree (or prefix) of PartitionSpecs; None replicates."""
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, PartitionSpec() if spec is None else spec),
            axes,
            is_leaf=lambda leaf: leaf is None or isinstance(leaf, PartitionSpec),
        )

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """The mesh and the logical axis rules, as a model's sharding constraints need them."""
        with jax.set_mesh(self.mesh), flax_partitioning.axis_rules(self._logical_axis_rules):
            yield

    def partition(
        self,
        fn: Callable[..., Any],
        in_axis_resources: PyTree,
        out_axis_resources: PyTree,
        static_argnums: int | Sequence[int] = (),
        donate_argnums: int | Sequence[int] = (),
    ) -> PartitionedFunction:
        """Jits `fn` over the mesh.

        Args:
          fn: the function.
          in_axis_resources: PartitionSpecs (or None: replicated) for each argument, as a pytree
            prefix of the arguments.
          out_axis_resources: the same for the outputs.
          static_argnums: as in `jax.jit`.
          donate_argnums: as in `jax.jit`.
        """
        jitted = jax.jit(
            fn,
            in_shardings=self.shardings(in_axis_resources),
            out_shardings=self.shardings(out_axis_resources),
            static_argnums=static_argnums,
            donate_argnums=donate_argnums,
        )
        return PartitionedFunction(jitted, self.context)

    def compile(self, partitioned_fn: PartitionedFunction, *args: Any) -> Callable[..., Any]:
        """Compiles for arguments shaped like `args`."""
        return partitioned_fn.lower(*args).compile()


# Upstream's base names; there is one partitioner here.
BasePartitioner = PjitPartitioner
BasePjitPartitioner = PjitPartitioner


def __getattr__(name: str) -> Any:
    if name == "ModelBasedPjitPartitioner":
        former_names.say("partitioning.ModelBasedPjitPartitioner", "partitioning.PjitPartitioner")
        # Gin knows a class by the name it meets first: let it be today's.
        former_names.register(PjitPartitioner, __name__)
        return PjitPartitioner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
