"""Image references: which are ones, and their full form."""

import pytest

from kakuri.image import check_image, normalize_image

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("someone/app", "docker.io/someone/app:latest"),
        ("localhost/demo:1.0", "localhost/demo:1.0"),
        ("localhost:5000/demo", "localhost:5000/demo:latest"),
        ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x"),
        ("ghcr.io/example/secure-app:1.0", "ghcr.io/example/secure-app:1.0"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"example.com/a__b/c-d.e:T_1.x@{DIGEST}", f"example.com/a__b/c-d.e:T_1.x@{DIGEST}"),
        ("Example.COM/app", "Example.COM/app:latest"),
        ("REGISTRY/app", "REGISTRY/app:latest"),
    ],
)
def test_a_reference_has_a_full_form(reference: str, full: str) -> None:
    assert check_image(reference) == ""
    assert normalize_image(reference) == full


@pytest.mark.parametrize(
    "reference",
    [
        "",
        " ",
        "busybox ",
        "busybox\n",
        "/busybox",
        "busybox/",
        "a//b",
        "busybox:",
        "busybox:-tag",
        "busybox:" + "t" * 129,
        "busybox@sha256:abc",
        "busybox@",
        "https://example.com/app",
        "example.com:port/app",
        "app:1.0:2.0",
        "bücher/app",
        "a" * 300,
        "../../etc/passwd",
        "-app",
        "$(reboot)",
    ],
)
def test_what_is_no_reference_is_refused_with_what_would_be_right(reference: str) -> None:
    problem = check_image(reference)
    assert "is not an image reference" in problem
    assert "such as ghcr.io/example/app:1.0" in problem
    assert len(problem) < 300
    if len(reference) < 256:
        with pytest.raises(ValueError, match="is not an image reference"):
            normalize_image(reference)


@pytest.mark.parametrize("reference", ["Busybox", "ghcr.io/Example/app", "docker.io/library/BusyBox:1"])
def test_a_name_in_capitals_is_told_to_be_in_lower_case(reference: str) -> None:
    assert "must be in lower case" in check_image(reference)
