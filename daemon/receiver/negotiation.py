"""Decide what an association may carry and in which encoding.

Every storage SOP class is taken, private and unknown ones too, in any transfer syntax; of those
that a sender offers for one presentation context the one that surely loses nothing is preferred.
What is known to be another service is refused context by context (PS3.8 9.3.3.2, result 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import StrEnum

from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import sop_class
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context

_VERIFICATION = "1.2.840.10008.1.1"
_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
_NEVER_ON_THE_NETWORK = "1.2.840.10008.1.3.10"  # Media Storage Directory: of media alone (PS3.4 I)

LOSSLESS_LITTLE_ENDIAN = frozenset(
    {
        "1.2.840.10008.1.2",  # Implicit VR Little Endian
        "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
        "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed
        "1.2.840.10008.1.2.1.99",  # Deflated
        "1.2.840.10008.1.2.4.57",  # JPEG Lossless, process 14
        "1.2.840.10008.1.2.4.58",  # JPEG Lossless, process 15
        "1.2.840.10008.1.2.4.65",  # JPEG Lossless, process 28
        "1.2.840.10008.1.2.4.66",  # JPEG Lossless, process 29
        "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 (Lossless Only)
        "1.2.840.10008.1.2.4.92",  # JPEG 2000 Part 2 (Lossless Only)
        "1.2.840.10008.1.2.4.110",  # JPEG XL Lossless
        "1.2.840.10008.1.2.4.201",  # HTJ2K (Lossless Only)
        "1.2.840.10008.1.2.4.202",  # HTJ2K with RPCL (Lossless Only)
        "1.2.840.10008.1.2.5",  # RLE Lossless
        "1.2.840.10008.1.2.8.1",  # Deflated Image Frame
    }
)
"""Transfer syntaxes that keep every stored value (PS3.5 annex A, PS3.6 annex A)."""

BIG_ENDIAN = "1.2.840.10008.1.2.2"


class Service(StrEnum):
    """What a proposed abstract syntax asks for."""

    STORAGE = "storage"
    VERIFICATION = "verification"
    OTHER = "other"


def service_of(abstract_syntax: UID) -> Service:
    """Tell which service an abstract syntax belongs to; private and unknown ones are storage."""
    if abstract_syntax == _VERIFICATION:
        return Service.VERIFICATION
    if not abstract_syntax or abstract_syntax == _NEVER_ON_THE_NETWORK:
        return Service.OTHER
    name = abstract_syntax.name
    if abstract_syntax in _storage_classes() or name == abstract_syntax:
        return Service.STORAGE  # a UID without an entry in the registry is its own name
    if abstract_syntax.type != "SOP Class" or "Storage Commitment" in name:
        return Service.OTHER
    unnamed = not name and abstract_syntax.startswith(_STORAGE_ROOT)
    return Service.STORAGE if "Storage" in name or unnamed else Service.OTHER


def preferred(transfer_syntaxes: Iterable[str]) -> list[str]:
    """Order what a sender offers: surely lossless first, possibly lossy last.

    Within a rank the sender's order is kept: lossless or uncompressed little endian, then big
    endian, then all that may lose something, among it every private and unknown one.
    """

    def rank(uid: str) -> int:
        if uid in LOSSLESS_LITTLE_ENDIAN:
            return 0
        return 1 if uid == BIG_ENDIAN else 2

    return sorted(dict.fromkeys(transfer_syntaxes), key=rank)


def arrange(association: Association) -> list[str]:
    """Prepare a requested association so that pynetdicom accepts just what we serve.

    pynetdicom's unrestricted mode takes the first transfer syntax proposed, and takes for storage
    whatever it has no name for (the worklist among others): what is refused gets an abstract syntax
    that is not served in the place of its own, which the answer does not carry (PS3.8 9.3.3.2).

    Returns
    -------
    list of str
        The abstract syntaxes that are refused.
    """
    request = association.requestor.primitive
    assert isinstance(request, A_ASSOCIATE)  # noqa: S101 - the event comes after the request
    refused: list[str] = []
    known_otherwise: defaultdict[UID, list[str]] = defaultdict(list)
    served = {context.abstract_syntax for context in association.acceptor.supported_contexts}
    for context in request.presentation_context_definition_list:
        abstract_syntax = context.abstract_syntax or UID("")
        offered = [str(uid) for uid in context.transfer_syntax]
        service = service_of(abstract_syntax) if offered else Service.OTHER
        if service is Service.OTHER and not (offered and abstract_syntax in served):
            refused.append(str(abstract_syntax))
            context.abstract_syntax = UID(_NEVER_ON_THE_NETWORK)
            # pynetdicom quotes the first one in its answer
            context.transfer_syntax = list(offered or [ImplicitVRLittleEndian])
        elif service is Service.STORAGE:
            context.transfer_syntax = list(preferred(offered))
            if not _taken_as_storage(abstract_syntax):
                known_otherwise[abstract_syntax] += offered
    association.acceptor.supported_contexts = [
        *association.acceptor.supported_contexts,
        *_contexts(known_otherwise.items()),
    ]
    return refused


def _contexts(offers: Iterable[tuple[UID, Sequence[str]]]) -> list[PresentationContext]:
    return [build_context(uid, list(preferred(offered))) for uid, offered in offers]


def _storage_classes() -> frozenset[str]:
    return frozenset(sop_class._STORAGE_CLASSES.values())


def _taken_as_storage(abstract_syntax: UID) -> bool:
    """Tell whether pynetdicom's unrestricted mode sees a storage class here too."""
    return (
        abstract_syntax.is_private
        or abstract_syntax in _storage_classes()
        or not hasattr(sop_class, abstract_syntax.keyword)
    )
