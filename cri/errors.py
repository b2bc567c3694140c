"""What can go wrong with a CRI runtime, and the one place where gRPC's words become it.

    CriError
    ├── NotFound           no such sandbox, container or image
    ├── AlreadyExists      the name is reserved: an earlier Run or Create went through, or was left half done
    ├── DeadlineExceeded   temporary: no answer in time; whether it was done is unknown, so look
    ├── Unavailable        temporary: no connection, or the runtime is going down; unknown too
    ├── InProgress         temporary: an earlier call is still at it; look what comes of that one
    ├── Unimplemented      the runtime lacks this method
    ├── InvalidArgument    we asked for something that can't be
    ├── ImagePullFailed    temporary: the registry's words; it may come back, or the image may be pushed
    └── RuntimeFailed      anything else, in the runtime's words

One rule: an error never means that something ended. After a temporary one, list by our labels.
"""

import re

import grpc

MAX_MESSAGE = 1000
"""Characters kept of a runtime's words. Shorter loses the cause, which runtimes put last (so the middle is cut);
longer and it no longer fits a table or a log line."""


class CriError(Exception):
    reason = "RuntimeFailed"
    temporary = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(CriError):  # noqa: N818 - the reason's own name, here and below, as people see it
    reason = "NotFound"


class AlreadyExists(CriError):  # noqa: N818
    reason = "AlreadyExists"


class DeadlineExceeded(CriError):  # noqa: N818
    reason = "DeadlineExceeded"
    temporary = True


class Unavailable(CriError):  # noqa: N818
    reason = "Unavailable"
    temporary = True

    @property
    def surely_not_done(self) -> bool:
        """The call did not reach a runtime that was ready for it."""
        return bool(_NOT_REACHED.search(self.message))


class InProgress(CriError):  # noqa: N818
    reason = "InProgress"
    temporary = True


class Unimplemented(CriError):  # noqa: N818
    reason = "Unimplemented"


class InvalidArgument(CriError):  # noqa: N818
    reason = "InvalidArgument"


class ImagePullFailed(CriError):  # noqa: N818
    reason = "ImagePullFailed"
    temporary = True


class RuntimeFailed(CriError):  # noqa: N818
    pass


def from_grpc(method: str, code: grpc.StatusCode, details: str) -> CriError:
    """The error of a call that failed. method: CRI's name for it, such as RunPodSandbox."""
    words = trim(details) or code.name
    if method == "PullImage":
        return _of_pull(code, words)
    match code:
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(words)
        case grpc.StatusCode.ALREADY_EXISTS:
            return AlreadyExists(words)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(words)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable(words)
        case grpc.StatusCode.UNIMPLEMENTED:
            return Unimplemented(words)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgument(words)
        case _:
            return _by_words(words)


def trim(details: str) -> str:
    """A runtime's words without gRPC's wrapping, on one line, at most MAX_MESSAGE characters."""
    words = _WRAPPING.sub("", " ".join(details.split())).removesuffix(": unknown")
    if len(words) <= MAX_MESSAGE:
        return words
    half = (MAX_MESSAGE - 3) // 2
    return f"{words[:half]} … {words[-half:]}"


_WRAPPING = re.compile(r"rpc error: code = \w+ desc = ")

# containerd says UNKNOWN for nearly everything, CRI-O too: only their words tell these two apart. Both patterns name
# the thing, for "executable file not found in $PATH" is another matter.
_RESERVED = re.compile(r"\bname\b.*\bis (?:already )?reserved\b", re.IGNORECASE)
_NO_SUCH = re.compile(
    r"\b(?:find|load|get) (?:pod ?)?(?:sandbox|container)\b.*\b(?:not found|does not exist)$", re.IGNORECASE
)
_UNDER_WAY = re.compile(r"\balready in (?:starting|removing) state\b", re.IGNORECASE)
# containerd's words while it starts and while it ends, and Go's for a call whose caller has hung up.
_NOT_REACHED = re.compile(r"failed to connect to all addresses|server is not initialized yet")
_HUNG_UP = re.compile(r"server is not initialized yet|context canceled")


def _by_words(words: str) -> CriError:
    if _RESERVED.search(words):
        return AlreadyExists(words)
    if _NO_SUCH.search(words):
        return NotFound(words)
    if _UNDER_WAY.search(words):
        return InProgress(words)
    if _HUNG_UP.search(words):
        return Unavailable(words)
    return RuntimeFailed(words)


def _of_pull(code: grpc.StatusCode, words: str) -> CriError:
    # A registry that is silent, gone or without this image is not the runtime's failure; only a runtime that can't be
    # reached, or refuses the request as such, is told apart.
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(words)
        case grpc.StatusCode.UNIMPLEMENTED:
            return Unimplemented(words)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgument(words)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return ImagePullFailed(f"the pull took too long: {words}")
        case _:
            return ImagePullFailed(words)
