"""kakuri (隔離): containers in strongly isolated sandboxes, without Kubernetes.

This package holds the words that controller, agent and command line share, and the client side. It imports none
of the other three packages.
"""

__version__ = "0.1.0"
