"""A copy that verifies signatures stays within the memory budget of every copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests import registry_http
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout
from tests.runner import Result, measured, measured_pipe
from tests.signed_image import cosign_tag
from tests.signing import Signer, bundle, bundle_referrer, envelope, sign_with_tag, statement

_MIB: Final = 1 << 20
#: The limit for the peak memory of a process with default settings.
_BUDGET: Final = 48 * _MIB


@pytest.mark.parametrize("is_piped", [False, True])
def test_a_copy_with_signatures(
    layout: Layout, trusted: Signer, start: Callable[..., FaultyRegistry], is_piped: bool
) -> None:
    source, target = start(), start()
    image = layout.image([16 * _MIB, 16 * _MIB, 16 * _MIB, 16 * _MIB])
    registry_http.seed(layout, image, source.host, "app", "1")
    registry_http.seed(layout, sign_with_tag(layout, image, trusted), source.host, "app", cosign_tag(image))
    for number in range(20):
        signed = bundle(dsseEnvelope=envelope(statement(image["digest"]), trusted), number=number)
        registry_http.seed(layout, bundle_referrer(layout, image, signed), source.host, "app")
    required = ["--require-signature", str(trusted.path)]
    results: tuple[Result, ...] = (
        measured_pipe(["pull", *required, f"{source.host}/app:1"], ["push", *required[:2][:2], f"{target.host}/app:1"])
        if is_piped
        else (measured("copy", *required, f"{source.host}/app:1", f"{target.host}/app:1"),)
    )
    for result in results:
        assert result.code == 0, result.err
        assert result.peak is not None
        assert result.peak < _BUDGET, f"{result.peak / _MIB:.1f} MiB: {result.argv}"
    assert registry_http.manifest_digest(target.host, "app", "1") == image["digest"]
