"""What a population needs of the devices' memory, and how many members fit at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import psutil

SHARE = 0.75  # of the memory that is free which a CPU's arrays may take, as XLA does on GPUs
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
CGROUP = Path("/sys/fs/cgroup")


class Plan(NamedTuple):
    """Bytes that `members` need at once, `shared` of them once for all, and the batch that fits."""

    members: int
    needed: int
    shared: int
    limit: int
    batch: int

    def line(self) -> str:
        each = (self.needed - self.shared) / self.members
        shared = f" and {readable(self.shared)} of recorded data" if self.shared else ""
        line = f"memory: {readable(each)} per member{shared}, {readable(self.needed)} in total"
        line += f" ({readable(self.limit)} available)"
        if self.batch == self.members:
            return line
        batches = -(-self.members // self.batch)
        return f"{line}: trained in {batches} batches of at most {self.batch}, one after the other"


def plan(members: int, needed: Callable[[int], int], limit: int, shared: int = 0) -> Plan:
    """The largest batch of members whose program fits into `limit` bytes.

    `needed(n)` says what n members need, `shared` what of it does not depend on n. Batches are
    made alike as far as that takes no more of them.

    Raises: ValueError where a single member does not fit.
    """
    whole = needed(members)
    if whole <= limit:
        return Plan(members, whole, shared, limit, members)
    devices = jax.local_device_count()
    each = max(1.0, (whole - shared) / members)
    batch = max(1, min(members - 1, int((limit - shared) / each)))
    while batch > 1:
        batch -= batch % devices if batch > devices else 0
        if needed(batch) <= limit:
            break
        batch -= 1
    if batch == 1 and needed(1) > limit:
        raise ValueError(
            f"memory: one member needs {readable(needed(1))}, more than the limit of "
            f"{readable(limit)}"
        )
    alike = -(-members // -(-members // batch))
    alike += -alike % devices
    return Plan(members, whole, shared, limit, min(alike, batch))


def available() -> int:
    """Bytes that arrays may take on all local devices together."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) * jax.local_device_count()
    return int(SHARE * free())


def free() -> int:
    """Bytes of the computer's memory that this process may still take."""
    return int(min(psutil.virtual_memory().available, _left_to_the_container()))


def _left_to_the_container() -> float:
    """Bytes that the container of this process may still take; inf where there is no limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        taken = int((CGROUP / "memory.current").read_text())
        rows = (line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        cached = int(dict(rows)["inactive_file"])  # what is given back when it is needed
    except (OSError, ValueError, KeyError):
        return math.inf
    return max(int(limit) - taken + cached, 0) if limit.isdigit() else math.inf


def readable(number: float) -> str:
    """Bytes as people read them: 1.5 MiB."""
    power = min(int(math.log2(max(number, 1))) // 10, len(UNITS) - 1)
    return f"{number / 1024**power:,.{min(power, 1)}f} {UNITS[power]}"
