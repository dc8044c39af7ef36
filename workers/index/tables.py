"""The tables of the index.

Column names follow the metadata dictionary where it has a name for the thing (`patient_ID`,
`study`, `series`, `instance_uid`, …), DICOM keywords otherwise. Times are ISO 8601 UTC text; JSON
is text, so that a NaN of a header survives on every database. Arrivals count: one row for each
entry that ever left the spool.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    func,
    literal_column,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts rows only in a column that is declared INTEGER
_Key = BigInteger().with_variant(Integer, "sqlite")


def _key() -> Column[int]:
    return Column("id", _Key, primary_key=True)


def _to(table: str, nullable: bool = False) -> Column[int]:
    return Column(f"{table}_id", _Key, ForeignKey(f"{table}.id"), nullable=nullable, index=True)


meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),  # archive_id; spool_id of a host without a name
    Column("value", Text, nullable=False),
)

study = Table(
    "study",
    metadata,
    _key(),
    Column("study", Text, nullable=False, unique=True),
    Column("patient_ID", Text, nullable=False, index=True),
    Column("issuer_of_patient_id", Text, nullable=False, default=""),
    Column("study_description", Text, nullable=False, default=""),
    Column("study_date", Text),
    Column("study_time", Text),
    Column("two_patients", Boolean, nullable=False, default=False),
    Column("first_at", Text, nullable=False),
    Column("last_at", Text, nullable=False, index=True),
)

series = Table(
    "series",
    metadata,
    _key(),
    _to("study"),
    Column("series", Text, nullable=False, index=True),
    Column("series_description", Text, nullable=False, default=""),
    Column("series_number", Integer),
    Column("modality", Text, nullable=False, default=""),
    Column("frame_of_reference_uid", Text, index=True),
    Column("instances", Integer, nullable=False, default=0),
    Column("source", Text, nullable=False, default=""),
    Column("subject", Text, nullable=False, default=""),  # labels of the path it came by
    Column("session", Text, nullable=False, default=""),
    # verdicts, each with its reasons (JSON list of sentences)
    Column("role", Text),
    Column("role_reasons", Text, nullable=False, default="[]"),
    Column("state", Text, nullable=False, default="receiving", index=True),
    Column("expected", Integer),
    Column("state_reasons", Text, nullable=False, default="[]"),
    # the quiet clock: monotonic seconds of one boot, so that a stepped clock means nothing
    Column("last_boot", Text, nullable=False, default=""),
    Column("last_monotonic", Float, nullable=False, default=0.0),
    Column("quiet", Boolean, nullable=False, default=False),
    Column("first_at", Text, nullable=False),
    Column("last_at", Text, nullable=False),
    UniqueConstraint("study_id", "series"),
)

component = Table(
    "component",
    metadata,
    _key(),
    Column("parent", Text, nullable=False),  # "" for a patient, else the patient's component
    Column("folded", Text, nullable=False),  # the name in one case: twins collide on some systems
    Column("name", Text, nullable=False),
    Column("value", Text, nullable=False),  # what it stands for
    UniqueConstraint("parent", "folded"),
    UniqueConstraint("parent", "value"),
)

folder = Table(
    "folder",
    metadata,
    _key(),
    _to("series"),
    Column("home", Text, nullable=False, index=True),  # <PatientID>/<AccessionNumber>
    Column("digits", Text, nullable=False),  # 11111/22222/33333/44444
    Column("accession_number", Text, nullable=False, default="", index=True),
    # a delivery that was adopted where it lies may hold what we never make: a series in two
    # folders, two series in one
    Column("adopted", Boolean, nullable=False, default=False, server_default=false()),
    UniqueConstraint("series_id", "home", "digits"),
)
Index(
    "uq_folder_home_digits_ours", folder.c.home, folder.c.digits, unique=True,
    sqlite_where=~folder.c.adopted, postgresql_where=~folder.c.adopted,
)  # fmt: skip
Index(
    "uq_folder_series_id_home_ours", folder.c.series_id, folder.c.home, unique=True,
    sqlite_where=~folder.c.adopted, postgresql_where=~folder.c.adopted,
)  # fmt: skip

instance = Table(
    "instance",
    metadata,
    _key(),
    _to("series"),
    _to("folder"),
    Column("instance_uid", Text, nullable=False, unique=True),
    Column("file_name", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger),  # of the file, when it was read
    Column("sha256", Text, nullable=False),
    Column("dataset_sha256", Text, nullable=False),
    Column("subseries", Text, nullable=False, default=""),
    Column("instance_number", Integer),
    Column("orientation", Text),
    Column("orientation_type", Text),
    Column("reference_ct", Text),
    Column("reference_rs", Text),
    Column("reference_pl", Text),
    Column("reference_frame", Text),
    Column("MR_repetition_time", Float),
    Column("MR_echo_time", Float),
    Column("MR_scan_sequence", Text),
    Column("MR_magnetic_field_strength", Float),
    Column("MR_imaged_nucleus", Text),
    Column("facts", Text, nullable=False),
    Column("filed_at", Text, nullable=False),
)

pair = Table(
    "pair",
    metadata,
    _key(),
    Column("study_id", _Key, ForeignKey("study.id"), nullable=False, unique=True),
    Column("state", Text, nullable=False, index=True),  # pending, ready, held, no_pair
    Column("pet", Text),
    Column("ct", Text),
    Column("reasons", Text, nullable=False, default="[]"),
    Column("decision", Text, nullable=False, default="{}"),
    Column("override", Text),
    # a generation is one wish to (re)build; done when the folder of that generation is in its place
    Column("generation", Integer, nullable=False, default=0),
    Column("done_generation", Integer, nullable=False, default=0),
    Column("failed_generation", Integer, nullable=False, default=0),
    Column("wanted", Text, nullable=False, default=""),  # fingerprint of what is to be paired
    Column("revision", Integer, nullable=False, default=0),
    Column("folder", Text, unique=True),  # <PatientID>/<AccessionNumber>/Auto-Paired…
    Column("result", Text),
    Column("begun_boot", Text, nullable=False, default=""),
    Column("begun_monotonic", Float, nullable=False, default=0.0),
    Column("needed_at", Text),  # when the last instance that the pair needed was filed
    Column("decided_at", Text),
    Column("ready_at", Text),
)

client = Table(
    "client",
    metadata,
    _key(),
    # whose number it is: a PatientID; a study without one is a client of its own
    Column("value", Text, nullable=False, unique=True),
    Column("number", Integer, nullable=False, unique=True),
)

arrival = Table(
    "arrival",
    metadata,
    _key(),
    Column("entry", Text, nullable=False, unique=True),
    Column("instance_uid", Text, index=True),
    Column("source", Text, nullable=False),
    Column("outcome", Text, nullable=False, index=True),
    Column("code", Text),
    Column("reason", Text),
    Column("size", BigInteger, nullable=False, default=0),
    Column("dataset_sha256", Text),
    Column("received_at", Text),  # when it was in the spool; unknown of older ones
    Column("host", Text),  # which host's spool and quarantine, where hosts have names
    Column("at", Text, nullable=False),
)

host = Table(
    "host",
    metadata,
    Column("name", Text, primary_key=True),  # spool.name
    Column("spool_id", Text, nullable=False, unique=True),
    Column("boot", Text, nullable=False),  # whose monotonic clock its series run on
    Column("beat", BigInteger, nullable=False, default=0),  # a sign of life: one more each time
    Column("stopped", Boolean, nullable=False, default=False),  # in peace: nothing comes in there
    Column("entries", Integer, nullable=False, default=0),  # that wait in its spool,
    Column("oldest_seconds", Float),  # the oldest for so long at that beat; without one: none
    Column("last_seen", Text, nullable=False),  # by the database's clock, for people
)

event = Table(
    "event",
    metadata,
    _key(),
    Column("at", Text, nullable=False, index=True),
    Column("kind", Text, nullable=False, index=True),
    Column("study_id", _Key, ForeignKey("study.id"), index=True),
    Column("series_id", _Key, ForeignKey("series.id")),
    Column("source", Text),
    Column("entry", Text, index=True),  # the arrival that it speaks of
    Column("note", Text, index=True, unique=True),  # the intake's note that it was made of
    Column("details", Text, nullable=False, default="{}"),
)

Index(
    "ix_series_open", series.c.last_boot,
    sqlite_where=series.c.quiet.is_(False), postgresql_where=series.c.quiet.is_(False),
)  # fmt: skip
SHORT_DESCRIPTION = 256
"""Characters; PostgreSQL indexes no value of over 2.7 KB, and a description may have any length."""
_is_short = func.length(study.c.study_description) <= literal_column(str(SHORT_DESCRIPTION))
Index(
    "ix_study_study_description", study.c.study_description,
    sqlite_where=_is_short, postgresql_where=_is_short,
)  # fmt: skip
Index("ix_pair_unfinished", pair.c.state, pair.c.generation, pair.c.done_generation)
