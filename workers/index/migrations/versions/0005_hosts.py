"""The hosts that share an index, each with its spool, and which of them holds what came in.

The sweeper finds the few series that are not quiet yet without looking at all others.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "host",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spool_id", sa.Text(), nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("stopped", sa.Boolean(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("oldest_seconds", sa.Float(), nullable=True),
        sa.Column("last_seen", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_host")),
        sa.UniqueConstraint("spool_id", name=op.f("uq_host_spool_id")),
    )
    op.add_column("arrival", sa.Column("host", sa.Text(), nullable=True))
    quiet: sa.ColumnClause[bool] = sa.column("quiet", sa.Boolean())
    few = quiet.is_(False)
    op.create_index(
        "ix_series_open", "series", ["last_boot"], sqlite_where=few, postgresql_where=few
    )


def downgrade() -> None:
    op.drop_index("ix_series_open", "series")
    op.drop_column("arrival", "host")
    op.drop_table("host")
