"""The API is what /openapi.json says: valid OpenAPI 3.1, and no answer, whatever is sent, that is not described."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from controller.api.openapi import describe
from controller.api.routes import RESOURCES, ROUTES
from support.http_api import registration, running_api, workload

DESCRIPTION = describe(ROUTES, RESOURCES, "1.2.3")
schema = schemathesis.openapi.from_dict(DESCRIPTION)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The API in a thread of its own, with a little in it, since schemathesis calls from a synchronous one."""
    found: list[str] = []
    ready, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running_api() as api:
            await api.put("/nodes/n1/registration", registration())
            await api.post("/workloads", workload())
            found.append(api.url)
            ready.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        ended.set()
        thread.join(10)


def test_the_description_is_valid_openapi_31() -> None:
    OpenAPIV31SpecValidator(DESCRIPTION).validate()


def test_every_route_has_a_name_of_its_own_and_tells_its_problems() -> None:
    names = [r.name for r in ROUTES]
    assert len(names) == len(set(names))
    for path, operations in DESCRIPTION["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert {"400", "500", "503"} <= operation["responses"].keys(), (method, path)


@schema.parametrize()
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_the_answer_is_as_described(case: Case, url: str) -> None:
    for endless in ("watch", "resource_version", "follow"):
        case.query.pop(endless, None)
    response = case.call(base_url=url)
    # What is an image, a selector or a token is more than a schema says: such a refusal is no error.
    excluded = [positive_data_acceptance]
    if response.status_code == 413:
        excluded.append(negative_data_rejection)  # refused before anybody could see what else is wrong with it
    case.validate_response(response, excluded_checks=excluded)
