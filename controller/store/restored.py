"""The columns of a restored database: raised above all that was seen of the lost one, and held until confirmed."""

from datetime import datetime

import sqlalchemy as sa

from controller.store.batch import Adopt
from controller.store.records import Restored
from controller.store.schema import allocations, changes, cluster, leases, nodes
from kakuri.model import Desired, Reason

RAISE = 2**20
"""What is added to each allocation's revision: agents may have seen so many newer ones that the backup has not."""
NOT_HEARD_SINCE = "the database was restored, and its agent was not yet heard of since"


def read(connection: sa.Connection) -> Restored | None:
    row = connection.execute(sa.select(cluster.c.restored_at, cluster.c.restored_epoch)).one()
    return Restored(row.restored_at, row.restored_epoch) if row.restored_at is not None else None


def adopt(connection: sa.Connection, to: Adopt, now: datetime) -> None:
    version = to.resource_version
    connection.execute(sa.update(leases).values(holder="", epoch=to.epoch, expires_at=0.0))
    connection.execute(sa.delete(changes))
    connection.execute(
        sa.update(cluster).values(
            resource_version=version, changes_held_after=version, restored_at=now, restored_epoch=to.epoch
        )
    )
    # No start is left to be sent: what may have run and be over since must not run again. A stop may be said again,
    # and need not be where it was done. Whether the node's lease ends a thing is known once it is told of it again.
    a = allocations.c
    settled = sa.or_(a.desired == Desired.RUN.value, sa.and_(a.released, a.accepted_revision >= a.revision))
    connection.execute(
        sa.update(allocations).values(
            revision=a.revision + RAISE,
            accepted_revision=sa.case((settled, a.revision + RAISE), else_=a.revision),
            lease_bound=sa.false(),
            observed_at=sa.case((a.released, a.observed_at), else_=None),
        )
    )
    unheard = {"ready": False, "reason": Reason.NODE_SILENT.value, "message": NOT_HEARD_SINCE, "lost_at": None}
    connection.execute(sa.update(nodes).values(unheard))


def confirm(connection: sa.Connection) -> None:
    # In the order in which all writers lock: the lease first.
    connection.execute(sa.update(leases).values(holder="", epoch=leases.c.epoch + 1, expires_at=0.0))
    connection.execute(sa.update(cluster).values(restored_at=None))
