"""Where a batch came from, and what is done with what comes from there."""

from __future__ import annotations

from config.logs import get_logger
from config.settings import Settings
from config.tables.intake import SourcePolicy
from workers.spool.batches import BatchSource, read_source

log = get_logger(__name__)


def provenance_of(settings: Settings, batch: str) -> tuple[BatchSource, SourcePolicy]:
    """Return the source of a batch and its policy; the strictest where the source is lost."""
    try:
        source = read_source(settings.layout, batch)
    except (FileNotFoundError, ValueError, TypeError):  # it was deleted, or is damaged
        log.warning("batch-without-description", batch=batch)
        source = BatchSource(kind="folder")
    if is_lost(source):
        return source, _strictest(settings)
    return source, settings.policy(
        calling_ae=source.calling_ae,
        called_ae=source.called_ae,
        address=source.address,
        folder=source.folder,
    )


def is_lost(source: BatchSource) -> bool:
    """Tell whether nobody knows where a batch came from: a member of an archive has its source."""
    return source.kind != "association" and not source.folder


def _strictest(settings: Settings) -> SourcePolicy:
    """Return the policy for a batch of nobody knows where: it may be one to de-identify."""
    policy = SourcePolicy.nowhere()
    if any(one.deidentify != "off" for one in settings.sources):
        policy = policy.model_copy(update={"deidentify": "dicognito"})
    return policy
