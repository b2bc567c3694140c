"""CRI v1: our own subset of the protocol, a typed client, conversions, and a fake runtime behind a real socket."""
