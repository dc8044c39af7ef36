"""The page that takes uploads: files, folders and archives, streamed into the spool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from config.logs import get_logger
from daemon.errors import UploadRefused
from daemon.web.access.csrf import FIELD, HEADER, UPLOADS, is_right
from daemon.web.access.guard import address_of
from daemon.web.parts import Parts, boundary_of
from daemon.web.services import Services, services_of
from daemon.web.showing import installation, page
from daemon.web.taking import NO_ROOM, Received, Upload, too_large
from daemon.web.uploaded import what_became
from workers.spool.notes import Details

PIECE_BYTES = 256 << 10
PIECE_SECONDS = 120.0
"""So much must come in this time, else the upload is broken off: nobody holds a place for ever."""

_OVERHEAD_BYTES = 256 << 20
"""What the headers of a hundred thousand parts may take beside the files."""

_LINGER_SECONDS = 10.0
_LINGER_BYTES = 256 << 20
_JSON = "application/json"

log = get_logger(__name__)


async def show_form(request: Request) -> Response:
    """Show the form; it works without JavaScript."""
    _check_on(request)
    return _form(request)


async def take_upload(request: Request) -> Response:
    """Take an upload into the spool; what is answered as received is durable there."""
    _check_on(request)
    services, body = services_of(request), _Body(request)
    received = Received("", 0, 0)
    refusal: UploadRefused | None = None
    if not services.uploading.acquire(blocking=False):
        refusal = UploadRefused(503, "other uploads run: try again when one has ended")
    else:
        try:
            received, refusal = await _take(request, services, body)
        finally:
            services.uploading.release()  # who is refused lingers, and keeps no place meanwhile
    if refusal is not None:
        return await _refused(request, body, refusal, received)
    if _wants_json(request):
        return JSONResponse(_told(received))
    return RedirectResponse(f"{UPLOADS}/{received.batch}", 303)


async def show_uploaded(request: Request) -> Response:
    """Show what became of an upload."""
    _check_on(request)
    place, batch = installation(request), request.path_params["batch"]
    became = await anyio.to_thread.run_sync(
        lambda: what_became(place.index, place.settings.layout, batch)
    )
    if became is None:
        raise HTTPException(404, "This upload is not known here; after a week it is forgotten.")
    if _wants_json(request):
        return JSONResponse(became.to_json_object())
    return page(request, "uploaded.html", became=became)


async def _take(
    request: Request, services: Services, body: _Body
) -> tuple[Received, UploadRefused | None]:
    """Return what is durable, and why nothing more is taken."""
    settings = services.settings
    maximum = settings.web.maximum_upload_mb << 20
    upload = Upload(settings.layout, services.room, services.dispatcher.offer, maximum)
    refusal: UploadRefused | None = None
    try:
        _check_length(request, upload, maximum)
        field = None if HEADER in request.headers else FIELD  # the header was checked (csrf.py)
        boundary = boundary_of(request.headers.get("content-type", ""))
        parts = Parts(boundary, upload, field, lambda given: is_right(request, given))
        async for piece in body.pieces(maximum):
            await anyio.to_thread.run_sync(parts.feed, piece)
        parts.finish()
    except UploadRefused as error:
        refusal = error
    except ClientDisconnect:
        refusal = UploadRefused(400, "the upload broke off before its end")
    finally:
        with anyio.CancelScope(shield=True):  # a stop of the page leaves nothing half either
            received, broken = await anyio.to_thread.run_sync(_close, upload)
    refusal = refusal or broken
    _note(request, services, received, refusal)
    if refusal is None and not received.files:
        refusal = UploadRefused(400, "no file was chosen")
    return received, refusal


def _close(upload: Upload) -> tuple[Received, UploadRefused | None]:
    try:
        return upload.close(), None
    except UploadRefused as error:
        return upload.received, error


def _check_length(request: Request, upload: Upload, maximum: int) -> None:
    """Refuse at once what says itself that it is too large. Raises UploadRefused."""
    length = request.headers.get("content-length", "0")
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
    if size > maximum + _OVERHEAD_BYTES:
        raise too_large(maximum)
    upload.check_room(size)


class _Body:
    """The body of a request, read in pieces that are worth a thread's while."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._ended = False

    async def pieces(self, maximum: int) -> AsyncIterator[bytes]:
        """Yield the pieces. Raises UploadRefused, ClientDisconnect."""
        total = 0
        while not self._ended:
            piece = bytearray()
            with anyio.move_on_after(PIECE_SECONDS) as patience:
                while len(piece) < PIECE_BYTES and not self._ended:
                    piece += await self._receive()
            if patience.cancelled_caught:
                raise UploadRefused(408, "the upload stood still, or came too slowly")
            total += len(piece)
            if total > maximum + _OVERHEAD_BYTES:
                raise too_large(maximum)
            yield bytes(piece)

    async def linger(self) -> None:
        """Read on for a while: a browser reads the answer only when it has sent all it wanted."""
        left = _LINGER_BYTES
        with anyio.move_on_after(_LINGER_SECONDS), suppress(ClientDisconnect):
            while left > 0 and not self._ended:
                left -= len(await self._receive())

    async def _receive(self) -> bytes:
        message = await self._request.receive()
        self._ended = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body: bytes = message.get("body", b"")
        return body


async def _refused(
    request: Request, body: _Body, refusal: UploadRefused, received: Received
) -> Response:
    log.debug("upload-refused", status=refusal.status, reason=str(refusal))
    await body.linger()
    if _wants_json(request):
        return JSONResponse({"error": str(refusal), **_told(received)}, refusal.status)
    return _form(request, refusal, received)


def _form(
    request: Request, refusal: UploadRefused | None = None, received: Received | None = None
) -> Response:
    web = services_of(request).settings.web
    return page(
        request,
        "upload.html",
        200 if refusal is None else refusal.status,
        wrong="" if refusal is None else str(refusal),
        received=received or Received("", 0, 0),
        maximum=web.maximum_upload_mb << 20,
    )


def _note(
    request: Request, services: Services, received: Received, refusal: UploadRefused | None
) -> None:
    about: Details = {
        "by": f"web {address_of(request)}",
        "files": received.files,
        "bytes": received.bytes,
    }
    if received.files:
        services.notes.note("uploaded", "upload", batch=received.batch, **about)
    if refusal is not None and refusal.status != NO_ROOM:  # that is told by the room itself
        services.notes.note("upload-refused", "upload", reason=str(refusal), **about)


def _told(received: Received) -> dict[str, object]:
    return {
        "batch": received.batch,
        "files": received.files,
        "bytes": received.bytes,
        "page": f"{UPLOADS}/{received.batch}" if received.batch else "",
    }


def _wants_json(request: Request) -> bool:
    return _JSON in request.headers.get("accept", "")


def _check_on(request: Request) -> None:
    if not services_of(request).settings.web.uploads:
        raise HTTPException(404, "Uploads are off (web.uploads).")


ROUTES = [
    Route(UPLOADS, show_form, methods=["GET"]),
    Route(UPLOADS, take_upload, methods=["POST"]),
    Route(f"{UPLOADS}/{{batch:str}}", show_uploaded, methods=["GET"]),
]
