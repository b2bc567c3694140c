"""The HTTP API: aiohttp in and out, one file a resource, all routes in one table."""

from controller.api.server import build_api, serving

__all__ = ["build_api", "serving"]
