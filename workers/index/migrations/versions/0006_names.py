"""Studies are found by an accession number or a description without reading all others."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_folder_accession_number"), "folder", ["accession_number"])
    short = sa.text("length(study_description) <= 256")
    op.create_index(
        "ix_study_study_description", "study", ["study_description"],
        sqlite_where=short, postgresql_where=short,
    )  # fmt: skip


def downgrade() -> None:
    op.drop_index("ix_study_study_description", "study")
    op.drop_index(op.f("ix_folder_accession_number"), "folder")
