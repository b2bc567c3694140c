"""The kinds of field that several objects share, each with an error that says what would be right.

Sources: DNS-1123 labels and label syntax are Kubernetes' (so that people's names and selectors carry over); the
numeric bounds are what CRI's int64 fields and a real machine can hold.
"""

import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from kakuri.image import check_image

MAX_NAME = 63
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def is_name(value: str) -> bool:
    return len(value) <= MAX_NAME and _DNS_LABEL.fullmatch(value) is not None


def check_name(value: str) -> str:
    """The value, when it is a DNS-1123 label: the only thing that is safe as host name, file name and path."""
    if not is_name(value):
        raise PydanticCustomError(
            "name",
            "{value} is not a name; use at most 63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
            {"value": _shown(value)},
        )
    return value


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """The labels, when each key is [prefix/]name and each value at most 63 characters of the same alphabet."""
    for key, value in labels.items():
        _check_label_key(key)
        if value and (len(value) > MAX_NAME or not _LABEL_NAME.fullmatch(value)):
            raise PydanticCustomError(
                "label_value",
                "label {key} has the value {value}; use at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', starting and "
                "ending with a letter or digit",
                {"key": key, "value": _shown(value)},
            )
    return labels


def _check_label_key(key: str) -> None:
    prefix, slash, name = key.rpartition("/")
    good_prefix = not slash or (len(prefix) <= 253 and _LABEL_PREFIX.fullmatch(prefix))
    if not good_prefix or len(name) > MAX_NAME or not _LABEL_NAME.fullmatch(name):
        raise PydanticCustomError(
            "label_key",
            "{key} is not a label key; use a name like 'app' or 'example.com/app'",
            {"key": _shown(key)},
        )


def check_env(env: dict[str, str]) -> dict[str, str]:
    for key, value in env.items():
        if not _ENV_NAME.fullmatch(key):
            raise PydanticCustomError(
                "env_name",
                "{key} is not the name of an environment variable; use letters, digits, '_', '.' and '-', "
                "not starting with a digit",
                {"key": _shown(key)},
            )
        _no_nul(value)
    return env


def _no_nul(value: str) -> str:
    if "\x00" in value:
        raise PydanticCustomError("nul", "a NUL character can't be passed to a process; remove it", {})
    return value


def _check_host_ip(value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise PydanticCustomError(
            "host_ip",
            "{value} is not an IPv4 address; use one of this node's, such as 127.0.0.1, or 0.0.0.0 for all",
            {"value": _shown(value)},
        ) from None


def _check_absolute(value: str) -> str:
    if not value.startswith("/"):
        raise PydanticCustomError(
            "absolute_path", "{value} is not an absolute path; start it with '/'", {"value": _shown(value)}
        )
    return _no_nul(value)


def _check_image_field(value: str) -> str:
    problem = check_image(value)
    if problem:
        raise PydanticCustomError("image", "{problem}", {"problem": problem})
    return value


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")


def _none_is_absent(value: Any) -> Any:
    # A key with nothing behind it (`labels:`) is how people empty a map or a list in YAML.
    return {} if value is None else value


Name = Annotated[
    StrictStr,
    AfterValidator(check_name),
    Field(json_schema_extra={"pattern": f"^{_DNS_LABEL.pattern}$", "maxLength": MAX_NAME}),
]
Image = Annotated[
    StrictStr, AfterValidator(_check_image_field), Field(json_schema_extra={"examples": ["ghcr.io/example/app:1.0"]})
]
_MAP_OR_NOTHING = {"type": ["object", "null"]}
Labels = Annotated[
    dict[StrictStr, StrictStr],
    Field(max_length=64, json_schema_extra=_MAP_OR_NOTHING),
    BeforeValidator(_none_is_absent),
    AfterValidator(check_labels),
]
Env = Annotated[
    dict[StrictStr, StrictStr],
    Field(max_length=1024, json_schema_extra=_MAP_OR_NOTHING),
    BeforeValidator(_none_is_absent),
    AfterValidator(check_env),
]
Argument = Annotated[StrictStr, Field(max_length=131_072), AfterValidator(_no_nul)]
Arguments = Annotated[tuple[Argument, ...], Field(max_length=1024)]
AbsolutePath = Annotated[
    StrictStr, Field(max_length=4096, json_schema_extra={"pattern": "^/"}), AfterValidator(_check_absolute)
]
HostIp = Annotated[StrictStr, AfterValidator(_check_host_ip), Field(json_schema_extra={"format": "ipv4"})]
Port = Annotated[StrictInt, Field(ge=1, le=65_535)]
MemoryMb = Annotated[StrictInt, Field(ge=1, le=16_777_216)]  # 16 TiB: more is a slip of units, not a machine
CpuMillicores = Annotated[StrictInt, Field(ge=1, le=1_024_000)]  # 1,024 cores, for the same reason
