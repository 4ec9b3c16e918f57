"""Evidence: what a cycle leaves behind, written atomically, hashed, and verified before it is read.

In: rows of tables from either wing. Out: runs of records (`runs`, `steps`), whose columns are defined in `rows`, the
data dictionary, and cache entries that are keyed by all that determines them (`cache`).
Both wings meet only here: every room above may know this one; it knows parameters and the ground floor.
"""
