"""The states of a run and the reasons people know, spelled in one place.

Pending < Running < Terminating < Succeeded | Failed: a stored state only goes forward, and Pending may go straight
to an end. `Unknown` is never stored: it is shown while an allocation's node is silent.
"""

from enum import StrEnum


class State(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    TERMINATING = "Terminating"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"

    @property
    def ended(self) -> bool:
        return self in {State.SUCCEEDED, State.FAILED}

    def may_become(self, later: "State") -> bool:
        """Whether an allocation in this state may be stored in the later one."""
        return _RANK[later] >= _RANK[self] and (not self.ended or later is self)


_RANK = {
    State.PENDING: 0,
    State.RUNNING: 1,
    State.TERMINATING: 2,
    State.SUCCEEDED: 3,
    State.FAILED: 3,
    State.UNKNOWN: -1,
}


class Reason(StrEnum):
    """Why something is as it is. A StrEnum so that a typo is a type error; on the wire it is its value."""

    NONE = ""
    # waiting
    SCHEDULING = "Scheduling"
    UNSCHEDULABLE = "Unschedulable"
    SCALED_TO_ZERO = "ScaledToZero"
    BACK_OFF = "BackOff"
    """A replacement waits, because its predecessors failed to start."""
    STARTING = "Starting"
    PULLING = "Pulling"
    IMAGE_PULL_BACK_OFF = "ImagePullBackOff"
    SANDBOX_FAILED = "SandboxFailed"
    HOST_PORT_IN_USE = "HostPortInUse"
    START_ERROR = "StartError"
    CRASH_LOOP_BACK_OFF = "CrashLoopBackOff"
    RUNTIME_UNREACHABLE = "RuntimeUnreachable"
    # ends
    COMPLETED = "Completed"
    ERROR = "Error"
    OOM_KILLED = "OOMKilled"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    STOPPED = "Stopped"
    REFUSED = "Refused"
    INCOMPATIBLE_AGENT = "IncompatibleAgent"
    NODE_LOST = "NodeLost"
    # what the controller asked for
    UPDATING = "Updating"
    SCALING_DOWN = "ScalingDown"
    DRAINED = "Drained"
    """Its node is being drained."""
    DELETED = "Deleted"
    # a change of the spec
    UP_TO_DATE = "UpToDate"
    PAUSED = "Paused"
    """A change waits, because a slot that has it did not come up."""
    # nodes
    READY = "Ready"
    NODE_SILENT = "NodeSilent"
    FORGOTTEN = "Forgotten"
    """A person said that the node is gone. It is shown no more; its row stays while allocations refer to it."""
    # why an allocation was given up while its node may still run it
    FORCE_DELETED = "ForceDeleted"
    NODE_FORGOTTEN = "NodeForgotten"
    RESTORED = "Restored"
    NEVER_SEEN = "NeverSeen"
