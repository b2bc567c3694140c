"""PURE: what a pass may look at (snapshot) → what it decides (plan). No clock, no ids, no randomness of its own."""
