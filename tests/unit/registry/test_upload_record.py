"""Records of upload sessions: private, without secrets, locked while in use, and checked before use."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.registry.repository import Repository
from ocistream.registry.upload_record import (
    LockedRecord,
    SessionLocation,
    UploadRecords,
    can_store_location,
)
from tests.http_doubles import QuickTransport

HOME = "https://registry.example:5000"
UPLOADS = "/v2/team/app/blobs/uploads"
UUID = "7c5a02b7-46e1-4bce-bf31-4b883384286b"
REPOSITORY = Repository(QuickTransport(), "registry.example:5000", "team/app")
DIGEST, SIZE = f"sha256:{'a' * 64}", 4_000_000
RECORD = SessionLocation(f"{HOME}/v2/team/app/blobs/uploads/1?_state=b%3D", 65_536)


def claimed(folder: Path) -> LockedRecord:
    claim = UploadRecords(folder).lock(REPOSITORY, DIGEST, SIZE)
    assert claim is not None
    return claim


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "uploads"


@pytest.fixture
def left(folder: Path) -> Path:
    """Return the record of an upload of another run."""
    claim = claimed(folder)
    claim.write(RECORD)
    claim.release()
    (file,) = folder.iterdir()
    return file


def before_the_first_lock(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Have another process act between our opening and our locking of a record."""
    really, went = fcntl.flock, list[int]()

    def flock(descriptor: int, operation: int) -> None:
        if not went:
            went.append(descriptor)
            happen()
        really(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_record_replaced_while_it_is_locked_belongs_to_the_other_process(
    folder: Path, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[LockedRecord] = []

    def replace() -> None:
        left.unlink()
        others.append(claimed(folder))

    before_the_first_lock(monkeypatch, replace)
    assert UploadRecords(folder).lock(REPOSITORY, DIGEST, SIZE) is None
    (other,) = others
    other.write(RECORD)
    other.release()
    again = claimed(folder)
    assert again.location == RECORD
    again.release()


def test_a_record_deleted_while_it_is_locked_is_created_again(
    folder: Path, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_the_first_lock(monkeypatch, left.unlink)
    claim = claimed(folder)
    assert claim.location is None
    claim.write(RECORD)
    claim.release()
    assert claimed(folder).location == RECORD


def test_the_number_of_open_records_is_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_OPEN_UPLOAD_RECORDS", 3)
    kept = UploadRecords(folder)
    claims = [kept.lock(REPOSITORY, f"sha256:{number:064}", 0) for number in range(5)]
    assert [claim is not None for claim in claims] == [True, True, True, False, False]
    for claim in claims:
        if claim is not None:
            claim.remove()
    again = kept.lock(REPOSITORY, DIGEST, SIZE)
    assert again is not None
    again.remove()


class TestLocations:
    @pytest.mark.parametrize(
        "session",
        [
            f"{UPLOADS}/{UUID}",
            f"{UPLOADS}/{UUID}?",
            f"{UPLOADS}/{UUID}?_state=SGVs_G8-%3D",
            f"{UPLOADS}/{UUID}?_state=SGVsbG8==",
            f"{UPLOADS}/{UUID}?_nouploadcache=false&_state=x_y-z%2B%2fa",
            f"{UPLOADS}/{UUID}?mount=sha256:{'a' * 64}&from=team%2Fbase",
            f"{UPLOADS}/{UUID}?digest=sha256%3A{'a' * 64}",
            f"/v2/team/app/blobs/upload/1:{UUID}",
            f"{UPLOADS}/k2j5h_2-x",
        ],
    )
    def test_usual_locations_of_registries_are_stored(self, session: str) -> None:
        assert can_store_location(f"{HOME}{session}", HOME, "team/app")
        assert can_store_location(f"https://REGISTRY.example:5000{session}", HOME, "team/app")
        assert can_store_location(f"{HOME}/gateway{session}", f"{HOME}/gateway/", "team/app")

    @pytest.mark.parametrize(
        "path",
        [
            "/v2/team/app/token=SECRET/u",
            "/v2/SECRET/blobs/uploads/u",
            "/v2/SECRET!!/blobs/uploads/u",
            "/v2/team/xyz/blobs/uploads/u",
            "/SECRET/v2/team/app/blobs/uploads/u",
            "/v2/team/app/blobs/uploads/SECRET/u",
            "/v2/team/app/blobs/uploads/u/SECRET",
            "/v2/team/app/blobs/uploads/u;sig=SECRET",
            "/v2/team/app/blobs/uploads/sig=SECRET",
            "/v2/team/app/blobs/uploads/sig%3DSECRET",
            "/v2/team/app/blobs/uploads/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
            f"/v2/team/app/blobs/uploads/{'u' * 200}",
            "/v2/team/app/blobs/uploads/",
            "/v2/team/app/blobs/uploads/u\u00ed",
            "/artifacts-uploads/namespaces/p/repositories/team/app/uploads/u",
            "/upload",
            "",
        ],
    )
    def test_other_paths_are_not_stored(self, path: str) -> None:
        assert not can_store_location(f"{HOME}{path}", HOME, "team/app")

    @pytest.mark.parametrize(
        "location",
        [
            f"http://registry.example:5000{UPLOADS}/x",
            f"https://registry.example{UPLOADS}/x",
            f"https://storage.example:5000{UPLOADS}/x",
            f"https://user:password@registry.example:5000{UPLOADS}/x",
            f"https://user@registry.example:5000{UPLOADS}/x",
            f"https://@registry.example:5000{UPLOADS}/x",
            f"{HOME}{UPLOADS}/x#token",
            f"{HOME}{UPLOADS}/x#",
            f"{HOME}{UPLOADS}/x y",
            f"{HOME}{UPLOADS}/\nx",
            f"{HOME}{UPLOADS}/x?_state=" + "x" * limits.MAX_UPLOAD_LOCATION,
            "file:///etc/passwd",
            f"//registry.example:5000{UPLOADS}/x",
            f"{UPLOADS}/x",
            "",
            "https://[/x",
        ],
    )
    def test_other_hosts_and_malformed_locations_are_not_stored(self, location: str) -> None:
        assert not can_store_location(location, HOME, "team/app")

    @pytest.mark.parametrize(
        "query",
        [
            "X-Amz-Signature=0",
            "X-Amz-Security-Token=0",
            "x-amz-credential=0",
            "x-goog-signature=0",
            "sv=2020&sr=b&sig=0&se=1",
            "Policy=0",
            "Key-Pair-Id=0",
            "Signature=0",
            "OSSAccessKeyId=0",
            "q-sign-algorithm=0",
            "access_token=0",
            "a=1&AUTH=0",
            "a=1;token=0",
            "%74oken=0",
            "t%6Fken=0",
            "password=0",
            "token",
            "_state=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
            "_state=eyJhbGciOiJIUzI1NiJ9%2EeyJzdWIiOiIxIn0%2Ec2ln",
            "_state=%65yJhbGciOiJIUzI1NiJ9",
            "_state=a;sig=0",
            "_state=a?sig=0",
            "%5fstate=a",
            "_nouploadcache=SECRET",
            "digest=SECRET",
            "mount=SECRET",
            "from=SECRET",
            "st=0",
            "hash=0&Expires=1",
            "h=0&e=1&s=2",
            "session=0&code=1",
            "a=%65yJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
            "s%C3%ADg=0",
            "se%0akret=0",
            "hdnts=exp=1~acl=/*~hmac=0",
            "SECRET",
            "=SECRET",
            "uuid=1&part=2",
        ],
    )
    def test_a_parameter_that_may_be_a_secret_is_not_stored(self, query: str) -> None:
        for given in (query, f"_state=a&{query}", f"{query}&_state=a"):
            assert not can_store_location(f"{HOME}{UPLOADS}/{UUID}?{given}", HOME, "team/app")
