"""How long a node may be silent, and what follows: the numbers that controller and agents must agree on.

One rule: the controller replaces only what has certainly ended. Counted from when it last heard of a node, that is

    lease_s        the node may go on without us for so long (counted there from when it sent what we heard)
    stop_bound_s   by then what is bound to the lease has ended there, by its agent or by its fencer
    clock_slack_s  for clocks of different speed
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeBounds:
    silent_after_s: float = 10.0
    """Without an answer for this long a node takes no new work and its allocations show as Unknown. Shorter and an
    agent's restart makes a stir; longer and work is sent to a dead node."""
    lease_s: float = 30.0
    """Shorter and a takeover between controllers, which takes up to 10 s, ends what is bound to the lease; longer and
    the replacement of a lost node's workloads is later."""
    stop_bound_s: float = 10.0
    """Shorter and workloads have no time to end well; longer and their replacement is later."""
    clock_slack_s: float = 5.0
    """Two clocks that differ by one in a thousand drift apart by 0.04 s in that time. More is for a machine that is
    slow to kill; less is for nobody."""
    lost_after_s: float = 0.0
    """When a node counts as lost; 0, or less than the sum of the three above, means that sum."""

    @property
    def certain_after_s(self) -> float:
        """From then on a silent node is lost, and what was bound to its lease has certainly ended."""
        return max(self.lease_s + self.stop_bound_s + self.clock_slack_s, self.lost_after_s)
