"""Scripts, styles and pictures of the service's own pages."""

from fastapi import Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope


class PackagedFiles(StaticFiles):
    """Files that are small, and sent whole whatever range is asked for.

    Starlette refuses in plain text ranges that a server is to ignore (RFC 9110, section 14.2), and looks for them when
    it sends a file.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file with its ETag, or 304 where the client has it.

        Args:
            path: Of the file, within the folder.
            scope: The request's; it loses its Range.

        Raises:
            HTTPException: There is none (404).
        """
        response = await super().get_response(path, scope)
        scope["headers"] = [one for one in scope["headers"] if one[0] != b"range"]
        response.headers["Accept-Ranges"] = "none"
        return response
