"""Around every request: its errors become problems, it is counted, and it leaves one line in the debug log.

One rule: what a handler did not foresee is logged here, once, with its trace, and told to the client without it.
"""

from collections.abc import Awaitable, Callable
from time import perf_counter

from aiohttp import web

from controller.api.ports import AgentError
from controller.api.problem import Problem, answer, internal, of_agent, of_aiohttp, of_store
from controller.api.streams import BEGUN, cut
from controller.store.contract import StoreError
from kakuri.log import OncePer, get_logger
from kakuri.metrics import HTTP_REQUESTS, HTTP_SECONDS

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = get_logger("api")
_say = OncePer(60, perf_counter)


@web.middleware
async def around(request: web.Request, handler: Next) -> web.StreamResponse:
    began = perf_counter()
    response = await _answered(request, handler)
    took_s = perf_counter() - began
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "unmatched"
    # The method is the client's to choose, so only known ones are a label.
    method = request.method if request.method in _METHODS else "other"
    HTTP_REQUESTS.labels(method, route, str(response.status)).inc()
    if not request.get(BEGUN, False):
        HTTP_SECONDS.labels(route).observe(took_s)
    _log.debug("request", method=request.method, path=request.path, status=response.status, took_s=round(took_s, 6))
    return response


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})


async def _answered(request: web.Request, handler: Next) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - the edge: nothing may pass but as a problem
        problem = _problem_of(error, request)
    if request.get(BEGUN, False):
        cut(request)
    return answer(problem)


def _problem_of(error: Exception, request: web.Request) -> Problem:
    match error:
        case Problem():
            return error
        case StoreError():
            problem = of_store(error)
            if problem.status >= 500 and _say(error.message):
                _log.warning("store failed", reason=error.reason, error=error.message, path=request.path)
            return problem
        case AgentError():
            return of_agent(error)
        case web.HTTPException():
            return of_aiohttp(error, request)
        case _:
            _log.error("request failed", method=request.method, path=request.path, exc_info=error)
            return internal()
