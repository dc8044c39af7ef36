"""Studies are found by an accession number or a description without reading all others."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_folder_accession_number"), "folder", ["accession_number"])
    op.create_index(op.f("ix_study_study_description"), "study", ["study_description"])


def downgrade() -> None:
    op.drop_index(op.f("ix_study_study_description"), "study")
    op.drop_index(op.f("ix_folder_accession_number"), "folder")
