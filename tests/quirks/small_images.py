"""Images of one or two blobs, for tests that check every request."""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import IO, Final

from tests.archives import blob_name, small_first, tar_of
from tests.faulty_registry import Request
from tests.images import Descriptor, Layout
from tests.quirks.quirky_registry import QuirkyRegistry

MIB: Final = 1 << 20
#: Larger than a client's reads, smaller than the buffers of sockets.
LAYER: Final = 600_001


def one_layer(layout: Layout, size: int = LAYER) -> tuple[Descriptor, bytes]:
    """Return an image with one layer, and its archive."""
    image = layout.image([size], name="app")
    return image, tar_of(small_first(layout))


def layer_of(layout: Layout, image: Descriptor) -> Descriptor:
    """Return the descriptor of an image's last layer."""
    found: Descriptor = layout.read(image["digest"])["layers"][-1]
    return found


def config_of(layout: Layout, image: Descriptor) -> Descriptor:
    """Return the descriptor of an image's config."""
    found: Descriptor = layout.read(image["digest"])["config"]
    return found


def is_stored(registry: QuirkyRegistry, layout: Layout, *blobs: Descriptor) -> bool:
    """Return whether a registry has exactly these blobs."""
    paths = [(registry.layout.blob_path(blob["digest"]), layout.file(blob["digest"])) for blob in blobs]
    return all(path.exists() and path.read_bytes() == made.read_bytes() for path, made in paths)


def upload_of(registry: QuirkyRegistry, blob: Descriptor) -> list[Request]:
    """Return the requests of the upload session of a blob."""
    (put,) = [request for request in registry.asked("PUT", "digest=") if blob["digest"] in _plain(request.target)]
    session = put.path.rpartition("/")[2]
    return [request for request in registry.requests if request.path.rpartition("/")[2] == session]


def _plain(target: str) -> str:
    return target.replace("%3A", ":").replace("%3a", ":")


def spoil(archive: bytes, layout: Layout, digest: str) -> bytes:
    """Return an archive whose blob has a wrong last byte, which is detected after most of a large blob is sent."""
    content = layout.file(digest).read_bytes()
    return archive.replace(content, content[:-1] + bytes([content[-1] ^ 1]))


def position_of(archive: bytes, digest: str) -> int:
    """Return the offset of a blob's content in an archive, after the header block with the blob's name."""
    return archive.index(blob_name(digest).encode()) // 512 * 512 + 512


def unread(pipe: IO[bytes]) -> int:
    """Return how many bytes the reader of a pipe has not read yet."""
    return int(struct.unpack("i", fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)))[0])
