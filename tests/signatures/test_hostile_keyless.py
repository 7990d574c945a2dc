"""Invalid keyless signatures and invalid trusted roots are refused."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import ocistream as api
from ocistream import limits
from ocistream.signatures.keyless import KeylessVerifier, load_verifier
from tests.cli import assertions
from tests.images import Descriptor, Layout
from tests.runner import Result, ocistream
from tests.signatures.fake_sigstore import IDENTITY, ISSUER, FakeSigstore, by
from tests.signed_image import cosign_tag
from tests.signing import (
    Signer,
    bundle,
    bundle_referrer,
    enter,
    envelope,
    payload,
    sign_with_tag,
    signer,
    statement,
    tag_signature,
)

Replace = Callable[..., Result]

_HOUR: Final = dt.timedelta(hours=1)
_OTHER_DIGEST: Final = f"sha256:{'0' * 64}"
_SBOM: Final = "https://spdx.dev/Document"


class Forgery:
    """The attacker's means: an image, a Sigstore that the user trusts, and the attacker's own Sigstore and key."""

    def __init__(
        self, layout: Layout, image: Descriptor, sigstore: FakeSigstore, foreign: FakeSigstore, key: Signer
    ) -> None:
        self.layout, self.image, self.sigstore, self.foreign, self.key = layout, image, sigstore, foreign, key
        self.statement = statement(image["digest"])

    def bundle(self, **options: Any) -> dict[str, Any]:
        """Return a bundle that is valid, unless an option changes it."""
        return self.sigstore.bundle(statement=self.statement, **options)

    def with_material(self, **changes: Any) -> dict[str, Any]:
        """Return a bundle whose verification material was changed."""
        found = self.bundle()
        found["verificationMaterial"].update(changes)
        return found

    def with_entry(self, **changes: Any) -> dict[str, Any]:
        """Return a bundle whose log entry was changed."""
        found = self.bundle()
        found["verificationMaterial"]["tlogEntries"][0].update(changes)
        return found

    def with_entry_of(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """Return a bundle with the log entry of another bundle."""
        return self.with_material(tlogEntries=other["verificationMaterial"]["tlogEntries"])

    def with_later_time(self) -> dict[str, Any]:
        """Return a bundle whose time differs from the one that the log signed."""
        entry = self.bundle()["verificationMaterial"]["tlogEntries"][0]
        return self.with_entry(integratedTime=str(int(entry["integratedTime"]) + 1))

    def with_material_of_another_statement(self) -> dict[str, Any]:
        """Return a bundle whose certificate and log entry are for another statement."""
        other = self.sigstore.bundle(statement=statement(_OTHER_DIGEST))
        return {**self.bundle(), "verificationMaterial": other["verificationMaterial"]}

    def with_tag_of_cosign(self) -> None:
        """Sign as cosign does when it writes no bundle."""
        content = payload(self.image["digest"])
        annotations = {"dev.sigstore.cosign/certificate": "x", "dev.sigstore.cosign/bundle": "{}"}
        signature = tag_signature(self.layout, [(content, self.key.sign(content))], annotations=annotations)
        enter(self.layout, signature, cosign_tag(self.image))


class Case(NamedTuple):
    """Words of the reason, and a function that returns a bundle, or None if the function itself adds the signature."""

    words: str
    forge: Callable[[Forgery], Mapping[str, Any] | None]


CASES: Final[Mapping[str, Case]] = {
    "another identity": Case("by another identity: x@example.com", lambda one: one.bundle(identity="x@example.com")),
    "another issuer": Case("by another identity", lambda one: one.bundle(issuer="https://x.example.com")),
    "a longer identity": Case("by another identity", lambda one: one.bundle(identity=f"{IDENTITY}.org")),
    "an untrusted authority": Case("certificate chain", lambda one: one.bundle(authority=one.foreign)),
    "an untrusted Sigstore": Case("certificate chain", lambda one: one.foreign.bundle(statement=one.statement)),
    "an untrusted log of certificates": Case("SCT", lambda one: one.bundle(certificate_log=one.foreign)),
    "an expired certificate": Case("not valid at validation time", lambda one: one.bundle(logged_after=_HOUR)),
    "a future certificate": Case("not valid at validation time", lambda one: one.bundle(logged_after=-_HOUR)),
    "a time that the log did not sign": Case("inclusion promise", lambda one: one.with_later_time()),
    "no entry": Case("log entry", lambda one: one.with_material(tlogEntries=[])),
    "no proof of the entry": Case("failed to load bundle", lambda one: one.with_entry(inclusionProof=None)),
    "no signed time": Case("inclusion promise", lambda one: one.with_entry(inclusionPromise=None)),
    "the entry of another signature": Case("log entry", lambda one: one.with_entry_of(one.bundle())),
    "an entry in an untrusted log": Case(
        "invalid log entry", lambda one: one.with_entry_of(one.foreign.bundle(statement=one.statement))
    ),
    "another body of the entry": Case(
        "inclusion proof", lambda one: one.with_entry(canonicalizedBody=base64.b64encode(b"{}").decode())
    ),
    "a statement about another image": Case(
        f"is for {_OTHER_DIGEST}", lambda one: one.sigstore.bundle(statement=statement(_OTHER_DIGEST))
    ),
    "another manifest": Case("the signature is for sha256:", lambda one: one.sigstore.bundle(manifest=b"{}")),
    "the material of another statement": Case(
        "DSSE: invalid signature", lambda one: one.with_material_of_another_statement()
    ),
    "an attestation": Case(
        f"an attestation ({_SBOM}) is not a signature",
        lambda one: one.sigstore.bundle(statement=statement(one.image["digest"], predicate_type=_SBOM)),
    ),
    "a huge bundle": Case(
        "its signature is larger than", lambda one: {**one.bundle(), "x": "x" * limits.MAX_SIGNATURE_PAYLOAD}
    ),
    "a malformed certificate": Case("not valid", lambda one: one.with_material(certificate={"rawBytes": "AAAA"})),
    "a certificate of another type": Case("not valid", lambda one: one.with_material(certificate=[1])),
    "an entry of another type": Case("failed to load bundle", lambda one: one.with_material(tlogEntries=[1])),
    "entries of another type": Case("failed to load bundle", lambda one: one.with_material(tlogEntries={"0": {}})),
    "a proof of another type": Case("failed to load bundle", lambda one: one.with_entry(inclusionProof=[[]])),
    "material of another type": Case("malformed", lambda one: {**one.bundle(), "verificationMaterial": 1}),
    "the signature of a key": Case(
        "it is signed by a key, not with a certificate",
        lambda one: json.loads(bundle(dsseEnvelope=envelope(one.statement, one.key))),
    ),
    "a keyless signature under a tag of cosign": Case(
        "its keyless signature is not in a Sigstore bundle", lambda one: one.with_tag_of_cosign()
    ),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, sigstore: FakeSigstore) -> Result:
    """Return the result for one layout with all cases, because starting the verifier takes most of the time."""
    folder = tmp_path_factory.mktemp("hostile")
    layout, foreign, key = Layout(folder / "layout"), FakeSigstore(folder), signer(folder / "key.pub")
    for number, (name, case) in enumerate(CASES.items()):
        image = layout.image([4_000 + number], name=name.replace(" ", "-"))
        if (forged := case.forge(Forgery(layout, image, sigstore, foreign, key))) is not None:
            bundle_referrer(layout, image, json.dumps(forged).encode())
    return ocistream("verify", *by(sigstore), "--json", layout.path)


@pytest.mark.parametrize("name", CASES)
def test_an_invalid_signature_is_refused(refused: Result, name: str) -> None:
    assert refused.code == 5, refused.err
    images = {image["name"]: image for image in json.loads(refused.out)["damagedImages"]}
    assert CASES[name].words in images[name.replace(" ", "-")]["signature"]["problem"]


def test_the_reason_is_one_line_that_names_the_image(layout: Layout, image: Descriptor, sigstore: FakeSigstore) -> None:
    forged = sigstore.bundle(statement=statement(image["digest"]), identity="https://x/\n\x1b[2J")
    bundle_referrer(layout, image, json.dumps(forged).encode())
    result = ocistream("verify", *by(sigstore), layout.path)
    assert result.code == 5
    line = result.err.splitlines()[-1]
    assert f"app:1 ({image['digest']}): no valid signature: it is signed by another identity: https://x/" in line
    assert "\x1b" not in line


def test_a_keyless_signature_does_not_count_for_a_key(
    layout: Layout, image: Descriptor, trusted: Signer, sigstore: FakeSigstore
) -> None:
    found = sigstore.bundle(statement=statement(image["digest"]))
    bundle_referrer(layout, image, json.dumps(found).encode())
    result = ocistream("verify", "--key", trusted.path, layout.path)
    assert result.code == 5
    assert "it is signed with a certificate (keyless), not by a given key" in result.err


def test_the_package_must_verify_the_statement_that_was_read(sigstore: FakeSigstore) -> None:
    verifier = load_verifier(sigstore.trusted_root.read_text(), [(IDENTITY, ISSUER)])
    assert isinstance(verifier, KeylessVerifier)
    found = json.dumps(sigstore.bundle(statement=statement(_OTHER_DIGEST))).encode()
    assert verifier.find_identities(found, b"another statement", is_statement=True) == "its bundle has two statements"


class TestOptions:
    @pytest.mark.parametrize("omitted", [0, 2, 4])
    def test_each_of_the_three_options_needs_the_others(
        self, layout: Layout, sigstore: FakeSigstore, omitted: int
    ) -> None:
        options = by(sigstore)
        rest = (*options[:omitted], *options[omitted + 2 :])
        for command in (("verify", layout.path), ("copy", layout.path, "oci:x"), ("pull", "app:1"), ("push", "app:1")):
            assertions.failure(ocistream(*command, *rest), 2, f"{options[omitted]} must be given too")

    def test_an_empty_value_does_not_disable_the_check(self, layout: Layout, sigstore: FakeSigstore) -> None:
        for options in (by(sigstore, identity=""), by(sigstore, issuer="")):
            assertions.failure(ocistream("verify", *options, layout.path), 2, "must be given too")
        assertions.failure(ocistream("verify", "--key", "", layout.path), 2, "--key is empty")
        assertions.failure(
            ocistream("copy", "--require-signature=", layout.path, "oci:x"), 2, "the path of a public key is empty"
        )


class TestTrustedRoots:
    @pytest.fixture
    def use(self, layout: Layout, image: Descriptor, sigstore: FakeSigstore, tmp_path: Path) -> Callable[..., Result]:
        """Return a function that verifies with the given trusted root."""
        del image
        file = tmp_path / "root.json"

        def verify(content: str | None) -> Result:
            if content is not None:
                file.write_text(content)
            return ocistream("verify", *by(sigstore)[:-1], file, layout.path)

        return verify

    def test_a_missing_file_is_reported(self, use: Callable[..., Result]) -> None:
        assertions.failure(use(None), 4, "root.json", "no such file")

    def test_a_directory_is_refused(self, use: Callable[..., Result], tmp_path: Path) -> None:
        (tmp_path / "root.json").mkdir()
        assertions.failure(use(None), 2, "cannot be used as a trusted root: it is a directory")

    def test_a_huge_file_is_refused(self, use: Callable[..., Result], tmp_path: Path) -> None:
        with (tmp_path / "root.json").open("wb") as written:
            written.truncate(1 << 40)
        assertions.failure(use(None), 2, f"it is larger than {limits.MAX_TRUSTED_ROOT} bytes")

    @pytest.mark.parametrize("content", ["", "{}\n{}\n"])
    def test_text_that_is_not_json_is_refused(self, use: Callable[..., Result], content: str) -> None:
        assertions.failure(use(content), 2, "cannot be used as a trusted root: it is not JSON", "cosign trusted-root")

    @pytest.mark.parametrize("content", ["[]", "[" * 10_000 + "]" * 10_000])
    def test_another_document_is_refused(self, use: Callable[..., Result], content: str) -> None:
        assertions.failure(use(content), 2, "cannot be used as a trusted root: it is not a trusted root of Sigstore")

    def test_a_root_without_a_log_is_refused(self, use: Callable[..., Result], sigstore: FakeSigstore) -> None:
        document = {**sigstore.root_document(), "tlogs": []}
        assertions.failure(use(json.dumps(document)), 2, "cannot be used as a trusted root: ", "log")

    @pytest.mark.parametrize("field", ["certificateAuthorities", "tlogs", "ctlogs"])
    @pytest.mark.parametrize("is_empty", [True, False])
    def test_a_missing_part_is_named_before_a_signature_is_verified(
        self, use: Callable[..., Result], sigstore: FakeSigstore, field: str, is_empty: bool
    ) -> None:
        document = sigstore.root_document()
        del document[field]
        result = use(json.dumps({**document, **({field: []} if is_empty else {})}))
        assertions.failure(result, 2, "cannot be used as a trusted root: it has no ", f" ({field})")


class TestVerifiers:
    """The package sigstore, and the process that runs it, may fail."""

    @pytest.fixture
    def replace(self, layout: Layout, image: Descriptor, sigstore: FakeSigstore, tmp_path: Path) -> Replace:
        """Return a function that verifies the signed image with this code in the place of the package sigstore."""
        found = sigstore.bundle(statement=statement(image["digest"]))
        bundle_referrer(layout, image, json.dumps(found).encode())

        def verify(code: str, *options: str | Path) -> Result:
            (tmp_path / "path").mkdir()
            (tmp_path / "path/sigstore.py").write_text(code)
            env = {"PYTHONPATH": str(tmp_path / "path")}
            return ocistream("verify", *(options or by(sigstore)), layout.path, env=env)

        return verify

    def test_without_the_package_the_hint_says_how_to_install_it(self, replace: Replace) -> None:
        result = replace("raise ImportError\n")
        assertions.failure(result, 8, "the package sigstore is not installed", "`pip install sigstore`")

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9"),
            ("raise RuntimeError('a reason')", "ended with 1: RuntimeError: a reason"),
            ("print('text'); raise ImportError", "ended with 0"),
        ],
    )
    def test_a_verifier_that_fails_accepts_nothing(self, replace: Replace, code: str, words: str) -> None:
        message = f"signatures cannot be checked: the process that verifies them {words}\n"
        assertions.failure(replace(f"{code}\n"), 1, message)

    @pytest.mark.parametrize(
        "answer",
        [
            [],
            {},
            {"missing": ["sigstore"]},
            {"keys": [], "trusted_roots": [], "verdicts": []},
            {"keys": [], "trusted_roots": [1], "verdicts": []},
            {"keys": [], "trusted_roots": [None], "verdicts": [{"keys": [], "identities": [[0, 0]], "problem": None}]},
        ],
    )
    def test_an_unexpected_answer_of_the_verifier_accepts_nothing(self, replace: Replace, answer: object) -> None:
        result = replace(f"import os; print({json.dumps(answer)!r}, flush=True); os._exit(0)\n")
        message = "signatures cannot be checked: the process that verifies them gave an unexpected answer\n"
        assertions.failure(result, 1, message)
        assert "bug in ocistream" not in result.err

    @pytest.mark.parametrize(
        "verdicts",
        [
            [],
            [{"keys": [], "identities": [], "problem": None}] * 2,
            [{"keys": [], "identities": [[0, 1]], "problem": None}],
            [{"keys": [], "identities": [[0, -1]], "problem": None}],
            [{"keys": [], "identities": [[-1, 0]], "problem": None}],
            [{"keys": [-1], "identities": [], "problem": None}],
            [{"keys": [], "identities": [[0]], "problem": None}],
            [{"keys": [], "identities": [], "problem": 1}],
            [None],
        ],
    )
    def test_a_malformed_verdict_accepts_nothing(
        self, replace: Replace, tmp_path: Path, verdicts: list[object]
    ) -> None:
        # The first answer is for the trusted root.
        answers = [{"keys": [], "trusted_roots": [None], "verdicts": found} for found in ([], verdicts)]
        result = replace(
            "import os, pathlib\n"
            "marker = pathlib.Path(__file__).with_name('asked')\n"
            f"print({[json.dumps(answer) for answer in answers]!r}[marker.exists()], flush=True)\n"
            "marker.touch()\n"
            "os._exit(0)\n"
        )
        assertions.failure(result, 1, "the process that verifies them gave an unexpected answer\n")
        assert (tmp_path / "path/asked").exists()

    @pytest.mark.usefixtures("image")
    def test_a_verifier_that_does_not_exit_is_stopped(
        self, layout: Layout, sigstore: FakeSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "sigstore.py").write_text("import time\ntime.sleep(1_000)\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(limits, "VERIFIER_TIMEOUT", 0.5)
        signer: dict[str, Any] = {"certificate_oidc_issuer": ISSUER, "trusted_root": sigstore.trusted_root}
        with pytest.raises(api.OcistreamError, match=r"the process that verifies them was stopped after 0\.5 seconds"):
            api.verify(layout.path, certificate_identity=IDENTITY, **signer)

    def test_keys_do_not_need_the_package(
        self, layout: Layout, image: Descriptor, trusted: Signer, replace: Replace
    ) -> None:
        sign_with_tag(layout, image, trusted)
        assertions.success(replace("raise ImportError\n", "--key", trusted.path))
