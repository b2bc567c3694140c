"""What a transaction decides, the same for every store: pure functions over Tables that return a result and a batch."""
