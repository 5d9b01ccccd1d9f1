"""
``/docs``: the API reference in a browser, made of Swagger UI and the server's own document.

Every file comes from this package, and the page's Content-Security-Policy allows no other origin, so the page works on
a machine without a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import Path as PathName
from starlette.responses import FileResponse, Response

from tokentrace.errors import Rejected, quoted
from tokentrace.service.contract import Answer, Router, operation

REFERENCE_PATH = "/docs"
_HERE = Path(__file__).parent
#: Name in the URL -> (file, media type).
_FILES = {
    "init.js": (_HERE / "init.js", "text/javascript"),
    "swagger-ui-bundle.js": (_HERE / "swagger_ui" / "swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": (_HERE / "swagger_ui" / "swagger-ui.css", "text/css"),
}
#: The paths that need no token: the page, its files, and the path of a file as the document writes it.
REFERENCE_PATHS = (REFERENCE_PATH, f"{REFERENCE_PATH}/{{file}}", *(f"{REFERENCE_PATH}/{name}" for name in _FILES))
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


def reference_router(openapi_path: str) -> Router:
    """Return the routes of the page that shows the document at *openapi_path*."""
    router = Router("service")
    page = (_HERE / "page.html").read_text().replace("{openapi_path}", openapi_path).encode()

    @router.get(
        REFERENCE_PATH,
        **operation(
            "getReference",
            "This reference as a page",
            "The page needs no token. If the document needs one, the page asks for it.",
            Answer(str, "The page.", "<!doctype html>…", media="text/html"),
        ),
    )
    async def reference() -> Response:
        return Response(page, media_type="text/html", headers={**_HEADERS, "Content-Security-Policy": _POLICY})

    @router.get(
        f"{REFERENCE_PATH}/{{file}}",
        **operation(
            "getReferenceFile",
            "A file of the reference page",
            "Scripts and style sheets of the page. They need no token.",
            Answer(str, "A script.", '"use strict";…', media="text/javascript"),
            Answer(str, "A style sheet.", "body{margin:0}", media="text/css"),
            errors={404: "reference: there is no file 'x.js'"},
        ),
    )
    async def reference_file(
        file: Annotated[
            str, PathName(description="Name of the file.", json_schema_extra=_only(list(_FILES)), examples=["init.js"])
        ],
    ) -> Response:
        if file not in _FILES:
            raise Rejected(f"reference: there is no file {quoted(file)}", status=404)
        path, media = _FILES[file]
        return FileResponse(path, media_type=media, headers=_HEADERS)

    return router


def _only(names: list[str]) -> dict[str, Any]:
    return {"enum": names}
