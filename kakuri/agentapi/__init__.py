"""The wire between controller and agent: one proto, spoken by both, owned by neither."""
