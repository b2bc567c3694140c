"""CRI v1's wire, as far as kakuri speaks it: runtime.proto and what protoc makes of it."""
