"""A sender that writes down every answer before it sends the next instance.

    python chaos_scu.py PORT LIST ANSWERS

LIST holds one path a line; ANSWERS gets one line an instance: SOPInstanceUID, and the status in
hex, or "-" where the association ended without one. Data sets go out byte for byte.
"""

import os
import sys
from pathlib import Path

import pydicom
from pynetdicom import AE, _config
from pynetdicom.presentation import build_context

AE_TITLE = "PETCT_INGEST"


def main(port: str, paths: str, answers: str) -> int:
    _config.STORE_SEND_CHUNKED_DATASET = True
    files = Path(paths).read_text().splitlines()
    heads = [
        pydicom.dcmread(file, specific_tags=["SOPInstanceUID", "SOPClassUID"]) for file in files
    ]
    entity = AE("CHAOS_SCU")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
    kinds = {(head.SOPClassUID, head.file_meta.TransferSyntaxUID) for head in heads}
    entity.requested_contexts = [build_context(*kind) for kind in sorted(kinds)]
    association = entity.associate("127.0.0.1", int(port), ae_title=AE_TITLE)
    if not association.is_established:
        return 1
    descriptor = os.open(answers, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for file, head in zip(files, heads, strict=True):
        if not association.is_established:
            return 1
        answer = association.send_c_store(file)
        status = f"{answer.Status:04x}" if "Status" in answer else "-"
        os.write(descriptor, f"{head.SOPInstanceUID} {status}\n".encode())
        if status != "0000":
            break
    if association.is_established:
        association.release()
    os.close(descriptor)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
