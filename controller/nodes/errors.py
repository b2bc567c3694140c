"""What can go wrong with a node.

NodeError
├── NodeUnreachable   no answer in time, or no connection; what was asked may have been done
├── LogNotFound       the agent has no such log: never started, no earlier attempt, or removed
└── NodeRefused       the agent is bound to another cluster, has seen a newer epoch, or has another ledger
"""


class NodeError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NodeUnreachable(NodeError):  # noqa: N818 - the reason's own name, as people see it
    pass


class LogNotFound(NodeError):  # noqa: N818
    pass


class NodeRefused(NodeError):  # noqa: N818
    pass
