"""What a step leaves: the columns of every table, with their units. This is the data dictionary.

Rows are flat. A value that is missing is null, and `note` says why. Columns that follow from other numbers of a run are
computed here, once, by `derived`: when a row is made, and again when it is audited.
"""
