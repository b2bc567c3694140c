"""The control plane: HTTP in, SQL as the truth, loops that plan and act, gRPC out to the agents.

Floors, from the top: app → api | loops → store | nodes → plan → kakuri.model.
"""
