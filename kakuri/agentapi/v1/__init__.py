"""Version 1 of the agent's gRPC. The stubs are made from agent.proto by `make proto`; never edit them."""
