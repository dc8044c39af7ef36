"""Folders of a delivery that is adopted where it lies, and the labels of a series."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instance", sa.Column("mtime_ns", sa.BigInteger(), nullable=True))
    for name in ("subject", "session"):
        op.add_column(
            "series", sa.Column(name, sa.Text(), nullable=False, server_default=sa.text("''"))
        )
    with op.batch_alter_table("folder") as folder:
        folder.add_column(
            sa.Column("adopted", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        folder.drop_constraint("uq_folder_home_digits", type_="unique")
        folder.drop_constraint("uq_folder_series_id_home", type_="unique")
        folder.create_unique_constraint(
            "uq_folder_series_id_home_digits", ["series_id", "home", "digits"]
        )
    ours = sa.text("NOT adopted")
    for name, columns in (
        ("uq_folder_home_digits_ours", ["home", "digits"]),
        ("uq_folder_series_id_home_ours", ["series_id", "home"]),
    ):
        op.create_index(
            name, "folder", columns, unique=True, sqlite_where=ours, postgresql_where=ours
        )


def downgrade() -> None:
    op.drop_index("uq_folder_series_id_home_ours", table_name="folder")
    op.drop_index("uq_folder_home_digits_ours", table_name="folder")
    with op.batch_alter_table("folder") as folder:
        folder.drop_constraint("uq_folder_series_id_home_digits", type_="unique")
        folder.create_unique_constraint("uq_folder_home_digits", ["home", "digits"])
        folder.create_unique_constraint("uq_folder_series_id_home", ["series_id", "home"])
        folder.drop_column("adopted")
    for name in ("session", "subject"):
        op.drop_column("series", name)
    op.drop_column("instance", "mtime_ns")
