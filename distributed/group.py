"""The process group: who am I, sum this over all of us, does anyone object.

The loop always talks to a group, so it holds no `if distributed`; a group of one is the identity. Several
processes are joined by MLX's ring backend (TCP; Macs and Linux) and sum in few large float32 buckets
(`reduction.py`), because each message costs a round trip. Sums, never means: the loop divides once, by the
summed weight. MLX waits for a missing peer forever and holds Python's lock meanwhile, so a helper process
keeps the deadline of the start-up (`deadline.py`). To add a backend: a config here with its own `build`.
"""

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from pydantic import Field

from distributed.deadline import exit_after
from distributed.reduction import BUCKET_BYTES, sum_in_buckets
from utils.errors import BackendError
from utils.schema import TypedSection

LAUNCH = "mlx.launch --backend ring -n 2 -- python -m core.training --config ..."


class ProcessGroup:
    """Rank and size, and the collective operations. Every rank must call these in the same order."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        all_sum: Callable[[mx.array], mx.array] | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.rank = rank
        self.size = size
        self._all_sum = all_sum
        self._bucket_bytes = bucket_bytes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0

    def reduce(self, tree: Any) -> Any:
        """The sum of every array of a tree over all ranks; lazy, so it works inside `mx.compile`.

        Floats are summed in float32, integers as int32, and come back in the dtype they had. Shapes must be
        the same on every rank.
        """
        return tree if self._all_sum is None else sum_in_buckets(tree, self._all_sum, self._bucket_bytes)

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes. Waits for all of them; raises BackendError when one has gone."""
        if self._all_sum is None:
            return flag
        with self.reporting_loss():
            return bool(self._all_sum(mx.array(int(flag))).item())

    @contextlib.contextmanager
    def reporting_loss(self) -> Iterator[None]:
        """Turns what MLX raises, wherever a sum is evaluated, when another process has gone into a BackendError."""
        try:
            yield
        except RuntimeError as error:
            if "[ring]" not in str(error):
                raise
            raise BackendError(
                f"rank {self.rank} lost another process of the run: {error}; start all of them again with --resume"
            ) from error


class DistributedConfig(TypedSection):
    """One row of `distributed.DISTRIBUTED`."""

    @abstractmethod
    def build(self) -> ProcessGroup:
        """Join the group. Raises BackendError when that cannot be done."""


class SingleConfig(DistributedConfig):
    """One process."""

    type: str = "single"
    """The row of the table."""

    def build(self) -> ProcessGroup:
        """A group of one."""
        return ProcessGroup()


class DataParallelConfig(DistributedConfig):
    """Every process holds the whole model and computes its share of each batch; start with `mlx.launch`."""

    type: str = "data_parallel"
    """The row of the table."""
    timeout_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """How long to wait at the start for the other processes."""

    def build(self) -> ProcessGroup:
        """Join the ring that `mlx.launch` describes in MLX_RANK and MLX_HOSTFILE.

        Raises BackendError without a launcher or a ring backend. Exits with code 2 and an `error:` line when
        the other processes do not appear in time. A peer that dies later breaks the ring, which the next sum
        reports; one that hangs is waited for.
        """
        rank = os.environ.get("MLX_RANK")
        if rank is None or not os.environ.get("MLX_HOSTFILE"):
            raise BackendError(
                "distributed.type is data_parallel but MLX_RANK and MLX_HOSTFILE are not set: "
                f"start the processes with `{LAUNCH}`, or set distributed.type to single"
            )
        if not mx.distributed.is_available("ring"):
            raise BackendError("this build of MLX has no ring backend, which distributed.type data_parallel needs")
        message = (
            f"rank {rank} waited {self.timeout_seconds:g} s for the others: start one process for each host "
            f"in {os.environ['MLX_HOSTFILE']}, or raise distributed.timeout_seconds"
        )
        with exit_after(self.timeout_seconds, message):
            return ring_group()


def ring_group() -> ProcessGroup:
    """Join the ring; blocks until every process has. Raises BackendError with MLX's own reason."""
    try:
        world = mx.distributed.init(backend="ring", strict=True)
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"cannot join the ring of processes: {error}") from error
    return ProcessGroup(world.rank(), world.size(), lambda array: mx.distributed.all_sum(array, group=world))
