"""Who may write what the loops find out: the controller that leads, and no other.

One rule: each write of a loop is preceded by this, in the same transaction.
"""

from controller.store.contract import Fenced
from controller.store.tables import Tables


def check_lead(tables: Tables, epoch: int) -> None:
    """Nobody has taken the lead since this epoch, nor will before the transaction is over. Raises Fenced."""
    current = tables.lease_epoch()
    if current != epoch:
        raise Fenced(f"this controller led with epoch {epoch}, but the epoch is {current} now: another one leads")
