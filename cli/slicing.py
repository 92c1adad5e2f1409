"""Which part of a flow this process does, and the consumer groups that show how far a flow is."""

from connectors.settings import Settings
from connectors.slices import Slice

BY_TENANT = frozenset({"answer", "webhooks"})
"""Flows in which several topics meet, with keys of their own: their slices are tenants, not partitions."""


def slice_of(flow: str, settings: Settings) -> Slice | None:
    """What of the flow is this process's; None: all."""
    if settings.slices == 1:
        return None
    return Slice(settings.slice, settings.slices, "tenant" if flow in BY_TENANT else "partition")


def groups_of(flow: str, settings: Settings) -> tuple[str, ...]:
    """The consumer groups of a flow's slices.

    Slices by partition share one, as the processes of a cluster do: each commits what only it reads. Slices by tenant
    all read everything, and are not equally far.
    """
    group = f"{settings.group_prefix}.{flow}"
    if settings.slices == 1 or flow not in BY_TENANT:
        return (group,)
    return tuple(f"{group}.{number}" for number in range(settings.slices))


def group_of(flow: str, settings: Settings) -> str:
    """This process's consumer group."""
    groups = groups_of(flow, settings)
    return groups[settings.slice] if len(groups) > 1 else groups[0]
