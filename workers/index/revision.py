"""The version of the index' schema, for those who load no database library to ask for it."""

HEAD_REVISION = "0006"
"""The schema version of this program: the last of migrations/versions."""
