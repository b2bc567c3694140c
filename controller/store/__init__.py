"""The only SQL: one contract (contract.py), kept by SQLite, PostgreSQL and an in-memory twin."""
