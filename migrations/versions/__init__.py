"""One idea a file: NNNN_expand_slug.py adds, NNNN_contract_slug.py takes away what the release before no longer reads.

None imports the model: a migration does tomorrow what it does today. There are no downgrades: restore the backup.
"""
