"""Which results of storage commitment nobody can deliver, for `status`."""

from __future__ import annotations

from collections import Counter

from config.settings import Settings
from workers import clock
from workers.commitment.transactions import PEER_SECONDS, State, Transactions


def undeliverable(settings: Settings) -> list[str]:
    """Name the peers whose results nobody can deliver, each with what to do."""
    transactions = Transactions(settings.layout)
    known = {peer.ae_title for peer in settings.commitment.peers}
    results = (transactions.read(key, State.RESULT) for key in transactions.keys(State.RESULT))
    strangers = Counter(
        one.source.calling_ae
        for one in results
        if one is not None
        and one.source.calling_ae not in known
        and clock.seconds_since(one.decided_at) > PEER_SECONDS
    )
    return [
        f"{count} results of storage commitment wait for {title}: "
        "say in commitment.peers where it listens, or let it associate again"
        for title, count in sorted(strangers.items())
    ]
