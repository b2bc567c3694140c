"""cri/errors.py: runtimes' words, collected from containerd 1.7, 2.x and CRI-O, and what they become."""

import grpc
import pytest

from cri import errors
from cri.errors import from_grpc, trim

UNKNOWN = grpc.StatusCode.UNKNOWN
START_FAILED = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    'unable to start container process: exec: "nosuch": executable file not found in $PATH: unknown'
)


@pytest.mark.parametrize(
    ("method", "code", "details", "kind"),
    [
        pytest.param(
            "RunPodSandbox",
            UNKNOWN,
            'failed to reserve sandbox name "a_kakuri_a_0": name "a_kakuri_a_0" is reserved for "0123"',
            errors.AlreadyExists,
            id="containerd's reserved sandbox",
        ),
        pytest.param(
            "CreateContainer",
            UNKNOWN,
            'failed to reserve container name "main_a_kakuri_a_0": name "main_a_kakuri_a_0" is reserved for "0123"',
            errors.AlreadyExists,
            id="containerd's reserved container",
        ),
        pytest.param(
            "RunPodSandbox",
            UNKNOWN,
            "pod sandbox with name k8s_a_kakuri_a_0 already exists: name is reserved",
            errors.AlreadyExists,
            id="CRI-O's reserved sandbox",
        ),
        pytest.param("RunPodSandbox", grpc.StatusCode.ALREADY_EXISTS, "x", errors.AlreadyExists, id="said by code"),
        pytest.param(
            "StartContainer",
            UNKNOWN,
            'failed to set starting state for container "0123": container is already in starting state',
            errors.InProgress,
            id="containerd's start that is under way",
        ),
        pytest.param(
            "CreateContainer",
            UNKNOWN,
            "server is not initialized yet",
            errors.Unavailable,
            id="containerd that has just started",
        ),
        pytest.param(
            "CreateContainer", UNKNOWN, "context canceled", errors.Unavailable, id="a call that was hung up on"
        ),
        pytest.param(
            "ContainerStatus",
            grpc.StatusCode.NOT_FOUND,
            'an error occurred when try to find container "0123": not found',
            errors.NotFound,
            id="no such container, by code",
        ),
        pytest.param(
            "PodSandboxStatus",
            UNKNOWN,
            "rpc error: code = Unknown desc = an error occurred when try to find sandbox: not found",
            errors.NotFound,
            id="no such sandbox, by words",
        ),
        pytest.param(
            "RemovePodSandbox",
            UNKNOWN,
            'could not find pod sandbox "0123" : does not exist',
            errors.NotFound,
            id="CRI-O",
        ),
        pytest.param("StartContainer", UNKNOWN, START_FAILED, errors.RuntimeFailed, id="a command not found is no 404"),
        pytest.param(
            "RunPodSandbox",
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "Deadline Exceeded",
            errors.DeadlineExceeded,
            id="our deadline",
        ),
        pytest.param(
            "Version", grpc.StatusCode.UNAVAILABLE, "failed to connect", errors.Unavailable, id="no runtime there"
        ),
        pytest.param("Version", grpc.StatusCode.CANCELLED, "", errors.Unavailable, id="the runtime is going down"),
        pytest.param(
            "GetContainerEvents",
            grpc.StatusCode.UNIMPLEMENTED,
            "unknown method",
            errors.Unimplemented,
            id="a method it lacks",
        ),
        pytest.param(
            "CreateContainer", grpc.StatusCode.INVALID_ARGUMENT, "x", errors.InvalidArgument, id="a bad request"
        ),
        pytest.param(
            "PullImage",
            grpc.StatusCode.NOT_FOUND,
            'failed to resolve reference "docker.io/library/nosuch:latest": not found',
            errors.ImagePullFailed,
            id="an image that isn't there",
        ),
        pytest.param("PullImage", UNKNOWN, "dial tcp: no route to host", errors.ImagePullFailed, id="no registry"),
        pytest.param(
            "PullImage", grpc.StatusCode.DEADLINE_EXCEEDED, "", errors.ImagePullFailed, id="a pull that takes too long"
        ),
        pytest.param("PullImage", grpc.StatusCode.CANCELLED, "", errors.ImagePullFailed, id="a pull that was cut off"),
        pytest.param(
            "PullImage", grpc.StatusCode.UNAVAILABLE, "", errors.Unavailable, id="a runtime that isn't there to pull"
        ),
        pytest.param(
            "StopContainer", grpc.StatusCode.FAILED_PRECONDITION, "x", errors.RuntimeFailed, id="anything else"
        ),
    ],
)
def test_a_failed_call_becomes_one_of_our_errors(
    method: str, code: grpc.StatusCode, details: str, kind: type[errors.CriError]
) -> None:
    error = from_grpc(method, code, details)
    assert type(error) is kind
    assert error.reason == kind.__name__
    assert error.message


@pytest.mark.parametrize(
    ("kind", "temporary"),
    [
        (errors.NotFound, False),
        (errors.AlreadyExists, False),
        (errors.DeadlineExceeded, True),
        (errors.Unavailable, True),
        (errors.Unimplemented, False),
        (errors.InvalidArgument, False),
        (errors.ImagePullFailed, True),
        (errors.RuntimeFailed, False),
    ],
)
def test_each_error_says_whether_it_is_temporary(kind: type[errors.CriError], temporary: bool) -> None:
    assert kind("x").temporary is temporary


def test_words_are_stripped_of_grpcs_wrapping() -> None:
    assert trim("rpc error: code = Unknown desc = rpc error: code = NotFound desc = no\n  such: unknown") == "no such"
    assert trim(START_FAILED).endswith('exec: "nosuch": executable file not found in $PATH')


def test_long_words_keep_their_beginning_and_their_end() -> None:
    words = trim("first " + "x" * 5000 + " last")
    assert len(words) <= errors.MAX_MESSAGE
    assert words.startswith("first")
    assert words.endswith("last")
