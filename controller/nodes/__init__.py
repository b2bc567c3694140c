"""The only gRPC to agents: what the loops and the API want of a node, over kakuri/agentapi/v1/agent.proto."""

from controller.nodes.agents import Agents
from controller.nodes.errors import LogNotFound, NodeError, NodeRefused, NodeUnreachable

__all__ = ["Agents", "LogNotFound", "NodeError", "NodeRefused", "NodeUnreachable"]
