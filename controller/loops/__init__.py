"""The loops: each pass is load → pure decide → apply, idempotent, callable on its own, and kicked without payload."""
