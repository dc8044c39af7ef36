"""The audit: when an entry came, which entry an event speaks of, and no event is ever changed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_REFUSED = "events are only ever appended"
_ENTRY_OF = {
    "sqlite": "update event set entry = json_extract(details, '$.entry')",
    "postgresql": "update event set entry = details::json ->> 'entry'",
}


def upgrade() -> None:
    op.add_column("arrival", sa.Column("received_at", sa.Text(), nullable=True))
    op.add_column("event", sa.Column("entry", sa.Text(), nullable=True))
    op.add_column("event", sa.Column("note", sa.Text(), nullable=True))
    op.create_index(op.f("ix_event_entry"), "event", ["entry"], unique=False)
    op.create_index(op.f("ix_event_kind"), "event", ["kind"], unique=False)
    op.create_index(op.f("ix_event_note"), "event", ["note"], unique=True)
    dialect = op.get_bind().dialect.name
    op.execute(_ENTRY_OF[dialect])
    if dialect == "sqlite":
        for deed in ("update", "delete"):
            op.execute(
                f"create trigger event_no_{deed} before {deed} on event "
                f"begin select raise(abort, '{_REFUSED}'); end"
            )
    else:
        op.execute(
            "create function event_refuse() returns trigger language plpgsql as "
            f"$$ begin raise exception '{_REFUSED}'; end $$"
        )
        op.execute(
            "create trigger event_append_only before update or delete or truncate on event "
            "for each statement execute function event_refuse()"
        )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("drop trigger event_no_delete")
        op.execute("drop trigger event_no_update")
    else:
        op.execute("drop trigger event_append_only on event")
        op.execute("drop function event_refuse()")
    op.drop_index(op.f("ix_event_note"), table_name="event")
    op.drop_index(op.f("ix_event_kind"), table_name="event")
    op.drop_index(op.f("ix_event_entry"), table_name="event")
    op.drop_column("event", "note")
    op.drop_column("event", "entry")
    op.drop_column("arrival", "received_at")
