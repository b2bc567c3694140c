"""The only SQL: one contract (contract.py), kept by SQLite, PostgreSQL and an in-memory twin."""

from controller.store.open import open_store, upgrade

__all__ = ["open_store", "upgrade"]
