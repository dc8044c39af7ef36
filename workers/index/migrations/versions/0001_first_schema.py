"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "arrival",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("instance_uid", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("dataset_sha256", sa.Text(), nullable=True),
        sa.Column("at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrival")),
        sa.UniqueConstraint("entry", name=op.f("uq_arrival_entry")),
    )
    op.create_index(op.f("ix_arrival_instance_uid"), "arrival", ["instance_uid"], unique=False)
    op.create_index(op.f("ix_arrival_outcome"), "arrival", ["outcome"], unique=False)
    op.create_table(
        "component",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("parent", sa.Text(), nullable=False),
        sa.Column("folded", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_component")),
        sa.UniqueConstraint("parent", "folded", name=op.f("uq_component_parent_folded")),
        sa.UniqueConstraint("parent", "value", name=op.f("uq_component_parent_value")),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("patient_ID", sa.Text(), nullable=False),
        sa.Column("issuer_of_patient_id", sa.Text(), nullable=False),
        sa.Column("study_description", sa.Text(), nullable=False),
        sa.Column("study_date", sa.Text(), nullable=True),
        sa.Column("study_time", sa.Text(), nullable=True),
        sa.Column("two_patients", sa.Boolean(), nullable=False),
        sa.Column("first_at", sa.Text(), nullable=False),
        sa.Column("last_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("study", name=op.f("uq_study_study")),
    )
    op.create_index(op.f("ix_study_last_at"), "study", ["last_at"], unique=False)
    op.create_index(op.f("ix_study_patient_ID"), "study", ["patient_ID"], unique=False)
    op.create_table(
        "pair",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("pet", sa.Text(), nullable=True),
        sa.Column("ct", sa.Text(), nullable=True),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("override", sa.Text(), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("done_generation", sa.Integer(), nullable=False),
        sa.Column("failed_generation", sa.Integer(), nullable=False),
        sa.Column("wanted", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("begun_boot", sa.Text(), nullable=False),
        sa.Column("begun_monotonic", sa.Float(), nullable=False),
        sa.Column("needed_at", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.Text(), nullable=True),
        sa.Column("ready_at", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_pair_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pair")),
        sa.UniqueConstraint("folder", name=op.f("uq_pair_folder")),
        sa.UniqueConstraint("study_id", name=op.f("uq_pair_study_id")),
    )
    op.create_index(op.f("ix_pair_state"), "pair", ["state"], unique=False)
    op.create_index(
        "ix_pair_unfinished", "pair", ["state", "generation", "done_generation"], unique=False
    )
    op.create_table(
        "series",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("series", sa.Text(), nullable=False),
        sa.Column("series_description", sa.Text(), nullable=False),
        sa.Column("series_number", sa.Integer(), nullable=True),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("frame_of_reference_uid", sa.Text(), nullable=True),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("role_reasons", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expected", sa.Integer(), nullable=True),
        sa.Column("state_reasons", sa.Text(), nullable=False),
        sa.Column("last_boot", sa.Text(), nullable=False),
        sa.Column("last_monotonic", sa.Float(), nullable=False),
        sa.Column("quiet", sa.Boolean(), nullable=False),
        sa.Column("first_at", sa.Text(), nullable=False),
        sa.Column("last_at", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_series_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("study_id", "series", name=op.f("uq_series_study_id_series")),
    )
    op.create_index(
        op.f("ix_series_frame_of_reference_uid"), "series", ["frame_of_reference_uid"], unique=False
    )
    op.create_index(op.f("ix_series_series"), "series", ["series"], unique=False)
    op.create_index(op.f("ix_series_state"), "series", ["state"], unique=False)
    op.create_index(op.f("ix_series_study_id"), "series", ["study_id"], unique=False)
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("series_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_event_series_id")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_event_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index(op.f("ix_event_at"), "event", ["at"], unique=False)
    op.create_index(op.f("ix_event_study_id"), "event", ["study_id"], unique=False)
    op.create_table(
        "folder",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "series_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("home", sa.Text(), nullable=False),
        sa.Column("digits", sa.Text(), nullable=False),
        sa.Column("accession_number", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_folder_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_folder")),
        sa.UniqueConstraint("home", "digits", name=op.f("uq_folder_home_digits")),
        sa.UniqueConstraint("series_id", "home", name=op.f("uq_folder_series_id_home")),
    )
    op.create_index(op.f("ix_folder_home"), "folder", ["home"], unique=False)
    op.create_index(op.f("ix_folder_series_id"), "folder", ["series_id"], unique=False)
    op.create_table(
        "instance",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "series_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column(
            "folder_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("instance_uid", sa.Text(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("dataset_sha256", sa.Text(), nullable=False),
        sa.Column("subseries", sa.Text(), nullable=False),
        sa.Column("instance_number", sa.Integer(), nullable=True),
        sa.Column("orientation", sa.Text(), nullable=True),
        sa.Column("orientation_type", sa.Text(), nullable=True),
        sa.Column("reference_ct", sa.Text(), nullable=True),
        sa.Column("reference_rs", sa.Text(), nullable=True),
        sa.Column("reference_pl", sa.Text(), nullable=True),
        sa.Column("reference_frame", sa.Text(), nullable=True),
        sa.Column("MR_repetition_time", sa.Float(), nullable=True),
        sa.Column("MR_echo_time", sa.Float(), nullable=True),
        sa.Column("MR_scan_sequence", sa.Text(), nullable=True),
        sa.Column("MR_magnetic_field_strength", sa.Float(), nullable=True),
        sa.Column("MR_imaged_nucleus", sa.Text(), nullable=True),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("filed_at", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["folder_id"], ["folder.id"], name=op.f("fk_instance_folder_id")),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_instance_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("instance_uid", name=op.f("uq_instance_instance_uid")),
    )
    op.create_index(op.f("ix_instance_folder_id"), "instance", ["folder_id"], unique=False)
    op.create_index(op.f("ix_instance_series_id"), "instance", ["series_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_instance_series_id"), table_name="instance")
    op.drop_index(op.f("ix_instance_folder_id"), table_name="instance")
    op.drop_table("instance")
    op.drop_index(op.f("ix_folder_series_id"), table_name="folder")
    op.drop_index(op.f("ix_folder_home"), table_name="folder")
    op.drop_table("folder")
    op.drop_index(op.f("ix_event_study_id"), table_name="event")
    op.drop_index(op.f("ix_event_at"), table_name="event")
    op.drop_table("event")
    op.drop_index(op.f("ix_series_study_id"), table_name="series")
    op.drop_index(op.f("ix_series_state"), table_name="series")
    op.drop_index(op.f("ix_series_series"), table_name="series")
    op.drop_index(op.f("ix_series_frame_of_reference_uid"), table_name="series")
    op.drop_table("series")
    op.drop_index("ix_pair_unfinished", table_name="pair")
    op.drop_index(op.f("ix_pair_state"), table_name="pair")
    op.drop_table("pair")
    op.drop_index(op.f("ix_study_patient_ID"), table_name="study")
    op.drop_index(op.f("ix_study_last_at"), table_name="study")
    op.drop_table("study")
    op.drop_table("meta")
    op.drop_table("component")
    op.drop_index(op.f("ix_arrival_outcome"), table_name="arrival")
    op.drop_index(op.f("ix_arrival_instance_uid"), table_name="arrival")
    op.drop_table("arrival")
