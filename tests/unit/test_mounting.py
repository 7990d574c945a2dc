"""Blobs out of repositories that may have them: whom to ask, how often, and what becomes of a refused mount."""

from __future__ import annotations

import pytest

from ocistream.distribution import Repository
from ocistream.model import Descriptor
from ocistream.upload import Uploader
from tests.faults import Fault, refusal
from tests.faulty_auth import Bearer
from tests.network import QuickTransport, blob_of
from tests.unit.test_upload import BLOB, CONTENT, UPLOADS, Faulty, Quick, Source, is_clean, is_stored, methods, uploader


def lacks(*repositories: str) -> list[Fault]:
    """Return what makes a registry have nothing in these repositories; the embedded one has all blobs in all."""
    return [Fault(refusal(404, "BLOB_UNKNOWN"), "HEAD", f"/v2/{name}/blobs/", times=None) for name in repositories]


def one(number: int) -> Descriptor:
    return blob_of(str(number).encode())


def test_the_first_is_asked_for_the_mount_at_once_and_its_session_is_the_upload_s(faulty: Faulty, quick: Quick) -> None:
    registry = faulty()
    target = uploader(quick(), registry)
    assert not target.mount_from_any(BLOB, ["base", "other"])
    # The second was asked whether it has it, which opens nothing.
    assert methods(registry) == ["POST", "HEAD"]
    target.upload(Source().blob)
    assert methods(registry) == ["POST", "HEAD", "PATCH", "PUT"]
    assert is_stored(registry)
    assert is_clean(registry)


def test_a_blob_that_the_second_has_is_mounted_from_there_and_the_session_of_the_first_deleted(
    faulty: Faulty, quick: Quick
) -> None:
    registry = faulty()
    first = uploader(quick(), registry)
    assert not first.mount_from_any(BLOB, ["base"])
    registry.hold(CONTENT)
    assert first.mount_from_any(BLOB, ["other"])
    assert methods(registry) == ["POST", "POST", "DELETE"]
    assert is_clean(registry)


def test_who_refuses_is_not_asked_again(faulty: Faulty, quick: Quick) -> None:
    for status in (400, 401, 403, 404, 405):
        registry = faulty(Fault(refusal(status), "POST", "mount=", times=None), *lacks("other"))
        target = uploader(quick(), registry)
        for number in range(5):
            assert not target.mount_from_any(one(number), ["base"])
        assert len(registry.asked("POST", "from=base")) == 1


def test_who_has_had_nothing_for_long_is_not_asked_again(faulty: Faulty, quick: Quick) -> None:
    registry = faulty()
    target = uploader(quick(), registry)
    for number in range(20):
        assert not target.mount_from_any(one(number), ["base", "other"])
    assert len(registry.requests) == 16
    target.close()


def test_who_had_something_is_asked_first_and_has_credit_again(faulty: Faulty, quick: Quick) -> None:
    registry = faulty()
    registry.hold(CONTENT)
    target = uploader(quick(), registry)
    for number in range(7):
        assert not target.mount_from_any(one(number), ["base"])
    assert target.mount_from_any(BLOB, ["base"])
    for number in range(7):
        assert not target.mount_from_any(one(number), ["base"])
    assert target.mount_from_any(BLOB, ["fresh", "base"])
    target.close()


def test_the_token_for_asking_is_the_one_for_mounting(faulty: Faulty, quick: Quick) -> None:
    auth = Bearer()
    registry = faulty(auth=auth)
    transport: QuickTransport = quick()
    target = Uploader(Repository(transport, registry.host, "app", writes=True))
    assert not target.mount_from_any(BLOB, ["base", "team/other"])
    assert [request.scopes for request in auth.requests] == [
        ("repository:app:pull,push", "repository:base:pull"),
        ("repository:app:pull,push", "repository:team/other:pull"),
    ]
    assert registry.asked("POST", "mount=")[0].target == f"{UPLOADS}?mount={BLOB.digest}&from=base"
    target.close()


@pytest.mark.parametrize("sources", [[], ["app-that-refuses"]])
def test_with_nobody_to_ask_it_is_a_plain_upload(faulty: Faulty, quick: Quick, sources: list[str]) -> None:
    registry = faulty(Fault(refusal(403), "POST", "mount=", times=None))
    target = uploader(quick(), registry)
    assert not target.mount_from_any(BLOB, sources)
    target.upload(Source().blob)
    assert is_stored(registry)
