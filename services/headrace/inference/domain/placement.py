"""Which servers a deployment is loaded on: by the memory that is left there, and by what they have to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.scaling import Scale
from headrace.model_formats import ModelFormat

MIB: Final = 1 << 20
# Of a process that serves a version, without its file: measured, docs/adr/0046.
PROCESS_BYTES: Final[Mapping[ModelFormat, int]] = {ModelFormat.ONNX: 64 * MIB}
OTHER_PROCESS_BYTES: Final = 400 * MIB
# A file in memory, and what is computed with it.
FILE_FACTOR: Final = 2


@dataclass(frozen=True, slots=True)
class Tenant:
    """A deployment as servers feel it: bytes on each of them; seconds of work a second, over all of them.

    `scale`: where it is to be; `there`: servers that have anything of it now.
    """

    name: str
    scale: Scale
    memory: int
    busy: float = 0.0
    there: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a deployment goes, and who has to make room for it first."""

    scale: Scale
    evicted: tuple[str, ...] = ()


def memory_of(versions: Collection[ServedVersion], instances: int) -> int:
    """Bytes that these versions take on one server, about."""
    return sum(
        (PROCESS_BYTES.get(version.format, OTHER_PROCESS_BYTES) + FILE_FACTOR * version.size) * instances
        for version in versions
    )


def place(
    wanted: Scale,
    tenant: Tenant,
    others: Sequence[Tenant],
    *,
    servers: int,
    up: Collection[int],
    budget: int,
    evictable: Sequence[str] = (),
) -> Placed | None:
    """Servers for a deployment that is to have the wanted scale; None where it fits nowhere.

    `tenant`: where it is now; it stays there as far as that is possible. `up`: servers that answer. `budget`:
    bytes of one server, 0 for any number. `evictable`: of the others those that may be unloaded, the one that
    was asked last at the end.
    """
    for count in range(len(evictable) + 1):
        # Who was not asked for longest goes first, and only as many as have to.
        candidates = evictable[:count]
        left = [other for other in others if other.name not in candidates]
        scales = [
            scale
            for first in range(servers)
            if _fits(scale := replace(wanted, first=first), tenant.memory, left, servers, up, budget)
        ]
        if scales:
            best = min(scales, key=lambda scale: _cost(scale, tenant.scale, left, servers))
            chosen = best.servers(servers)
            evicted = (o.name for o in others if o.name in candidates and o.scale.servers(servers) & chosen)
            return Placed(best, tuple(evicted))
    return None


def fits_now(chosen: Collection[int], memory: int, others: Sequence[Tenant], budget: int) -> bool:
    """Whether these servers have room beside all that is there, also what is to go."""
    return all(sum(other.memory for other in others if at in other.there) + memory <= budget for at in chosen)


def _fits(
    scale: Scale, memory: int, others: Sequence[Tenant], servers: int, up: Collection[int], budget: int
) -> bool:
    chosen = scale.servers(servers)
    # Where all are wanted, those that are away come back to it.
    if scale.replicas < servers and not chosen <= set(up):
        return False
    return not budget or all(_memory(others, at, servers) + memory <= budget for at in chosen)


def _cost(
    scale: Scale, now: Scale, others: Sequence[Tenant], servers: int
) -> tuple[int, float, int, bool, int]:
    """Servers that would have to load it, how busy the busiest is, the fullest; then what changes least."""
    chosen = scale.servers(servers)
    return (
        len(chosen - now.servers(servers)),
        max((_busy(others, at, servers) for at in chosen), default=0.0),
        max((_memory(others, at, servers) for at in chosen), default=0),
        scale.first != now.first,
        scale.first,
    )


def _memory(tenants: Sequence[Tenant], server: int, servers: int) -> int:
    return sum(tenant.memory for tenant in tenants if server in tenant.scale.servers(servers))


def _busy(tenants: Sequence[Tenant], server: int, servers: int) -> float:
    return sum(tenant.busy / len(on) for tenant in tenants if server in (on := tenant.scale.servers(servers)))
