"""The agent: what runs on a node. gRPC and JSON lines in, CRI out, a ledger on disk between."""
