"""Image references: is this one, and what does it mean when parts are left out.

Grammar: distribution/reference (registry[:port]/path[:tag][@digest]), as containerd reads it.
"""

import re

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"[\w][\w.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<name>(?:{_DOMAIN}/)?{_PATH_PART}(?:/{_PATH_PART})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?",
    re.ASCII,
)
_MAX_NAME = 255


def check_image(reference: str) -> str:
    """What is wrong with this image reference, in words; empty when nothing is."""
    shown = repr(reference if len(reference) <= 80 else reference[:77] + "...")
    right = "use name[:tag][@digest], such as ghcr.io/example/app:1.0"
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        if reference != reference.lower() and _REFERENCE.fullmatch(reference.lower()):
            return f"{shown} is not an image reference: the name must be in lower case; {right}"
        return f"{shown} is not an image reference; {right}"
    if len(match["name"]) > _MAX_NAME:
        return f"{shown} is not an image reference: the name is over {_MAX_NAME} characters; {right}"
    return ""


def normalize_image(reference: str) -> str:
    """The full form that a runtime stores the image under: docker.io/library/ and :latest where they are left out."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError(check_image(reference))
    name = match["name"]
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        # A first part in capitals can only be a registry's: paths are in lower case.
        name = f"docker.io/{name}"
    tag = f":{match['tag']}" if match["tag"] else ""
    digest = f"@{match['digest']}" if match["digest"] else ""
    return f"{name}{tag or ('' if digest else ':latest')}{digest}"
