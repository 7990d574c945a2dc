"""Limits on untrusted input, buffers, timeouts and ages: one table of numbers.

Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Documents -------------------------------------------------------------------------------------------------
#: A manifest, an image index, `index.json` or `manifest.json`. Registries accept 4 MiB as well (distribution-spec,
#: "Pushing Manifests"), so everything that can be pushed can be copied.
MAX_MANIFEST: Final = 4 * MIB
#: An image configuration. It is parsed only for its platform and diff_ids.
MAX_CONFIG: Final = 8 * MIB
#: A config up to this size is parsed whenever it is copied. It is buffered for that, beside the memory of an upload.
#: Real ones stay under a tenth of this; `verify` parses all of them.
MAX_PARSED_CONFIG: Final = 2 * MIB
#: Characters of the labels of all images that one `inspect` shows; as Python objects they take some five times as much.
MAX_SHOWN_LABELS: Final = 1 * MIB
#: `oci-layout` holds one short field.
MAX_LAYOUT_FILE: Final = 4 * KIB
#: Nesting of JSON objects and arrays; real documents stay under ten.
MAX_JSON_DEPTH: Final = 64
#: Items of one JSON document, counted by its commas and brackets. Four megabytes of `[],[],` would otherwise become a
#: hundred megabytes of Python's lists. An index of `MAX_LIST_ENTRIES` images, each with a platform and some
#: annotations, has half as many.
MAX_JSON_ITEMS: Final = 250_000
#: A JSON document up to this size is parsed at once. As Python objects it takes many times its size, so the lists of a
#: larger one are parsed a few elements at a time.
MAX_JSON_UNSPLIT: Final = 64 * KIB
#: Elements of a list are parsed together up to this many bytes. As objects they take some twenty times as many.
MAX_JSON_GROUP: Final = 4 * KIB
#: A part of a JSON document: such elements, or all outside of these lists. Python makes a text and a string of the same
#: size from it. `verify` needs 44 MiB for a config of this size (promise 3: 48 MiB in total).
MAX_JSON_PART: Final = 7 * MIB
#: A part with characters beyond U+00FF: a single emoji makes Python use four bytes for each character of both.
#: `MAX_GRAPH_MEMORY` has room for that beside `MAX_GRAPH_BYTES`.
MAX_WIDE_JSON_PART: Final = 768 * KIB
#: Items of one part.
MAX_JSON_PART_ITEMS: Final = 20_000
#: Entries of an `index.json` or an image index, layers of a manifest.
MAX_LIST_ENTRIES: Final = 10_000
#: Indexes within indexes. A cycle is impossible by digest, but a long chain costs a request for each.
MAX_INDEX_DEPTH: Final = 8
#: Images, by name, in one transfer: the graph of each is built separately.
MAX_IMAGES: Final = 10_000
#: Descriptors that all images together need, counted once for each image: a thousand may name one index of thousands.
MAX_REQUIRED_DESCRIPTORS: Final = 500_000
#: Manifests from which platforms are chosen, counted once for each index that is an image.
MAX_PLATFORM_CANDIDATES: Final = 10 * MAX_LIST_ENTRIES
#: Manifests and indexes in one transfer: an index of `MAX_LIST_ENTRIES`, and some above it.
MAX_MANIFESTS: Final = MAX_LIST_ENTRIES + 100
#: Bytes of content in the `data` of one descriptor (image-spec, descriptor.md), and how many such blobs one transfer
#: keeps. BuildKit writes two bytes, the empty config.
MAX_EMBEDDED: Final = 4 * KIB
MAX_EMBEDDED_BLOBS: Final = 64
#: Configs and layers in one transfer, each counted once: a config and a layer for each of `MAX_LIST_ENTRIES` images.
MAX_BLOBS: Final = 2 * MAX_LIST_ENTRIES
#: Referrers (signatures, SBOMs) of the images of one transfer: one for each image of a large index. The entries that
#: lists of referrers have are counted once more separately, since each one costs a request.
MAX_REFERRERS: Final = MAX_LIST_ENTRIES
#: Referrers of referrers: each level costs requests to a registry, and another search through an archive.
MAX_REFERRER_DEPTH: Final = 8
#: All manifests of one transfer together, since they stay in memory until the end (promise 3: 48 MiB in total).
MAX_GRAPH_BYTES: Final = 8 * MIB
#: The same, with twice the size of the manifest that is being parsed (see `MAX_JSON_PART`). That allows one of
#: `MAX_MANIFEST` beside two MiB of others, or any number of small ones.
MAX_GRAPH_MEMORY: Final = MAX_GRAPH_BYTES + MAX_MANIFEST + 2 * MIB

# Archives --------------------------------------------------------------------------------------------------
#: One PAX extended header (CVE-2025-8194 came from trusting such sizes).
MAX_PAX_HEADER: Final = 1 * MIB
#: Records of one PAX header. Writers use up to ten, and one for each extended attribute; a MiB could have 200,000.
MAX_PAX_RECORDS: Final = 1_000
#: A name or a link's target from a GNU long name, a GNU long link or a PAX header: PATH_MAX.
MAX_LONG_NAME: Final = 4 * KIB
#: Headers that only describe the next entry, before one entry. Real archives have at most a PAX header, a global one, a
#: long name and a long link. Without a limit an archive could consist of them.
MAX_EXTENSION_HEADERS: Final = 16
#: Directories in one name: each costs time, and 4 KiB could have 2,000. An image archive has three.
MAX_NAME_DEPTH: Final = 100
#: All names together that may belong to a docker-archive, with the links' targets.
MAX_NAME_BYTES: Final = 1 * MIB
#: Memory for small JSON blobs that come before `index.json`. Beyond it they are written to the destination, and read
#: back if they turn out to be manifests.
MAX_BUFFERED_JSON: Final = 6 * MIB
#: Zeros after the end of an archive. They fill its last record, which with GNU tar's `--blocking-factor` and tapes has
#: some MiB. Inside gzip, a GiB of them is a MiB.
MAX_TRAILING_ZEROS: Final = 64 * MIB
#: Entries of a tar, including skipped ones: `MAX_MANIFESTS`, `MAX_BLOBS`, and as many others.
MAX_ENTRIES: Final = 50_000
#: Headers that only describe the next entry, and records of PAX headers, in one archive: five for each entry. GNU tar
#: writes four: a header with three times. Each costs microseconds, and gzip compresses them to almost nothing.
MAX_TOTAL_PAX_RECORDS: Final = 5 * MAX_ENTRIES

#: Volumes of one archive. All are open at once, and each takes a file descriptor, of which a process often has 1,024.
MAX_VOLUMES: Final = 500
#: Lines about blobs that continue in the next volume. Each blob shares a volume with at most one other, so a volume has
#: at most two parts. Each blob has one line above its parts.
MAX_PART_LINES: Final = 3 * MAX_VOLUMES
#: Archives and layouts that are read as one source, for the same reason.
MAX_INPUTS: Final = MAX_VOLUMES

# Compressed content ----------------------------------------------------------------------------------------
#: The window of a zstd frame: what `zstd --long` needs at its greatest usual width. A frame may ask for terabytes.
MAX_ZSTD_WINDOW: Final = 128 * MIB
#: Above this window, streams are decompressed one at a time, since each open stream keeps its window. The usual level
#: of zstd has 2 MiB, the highest ones 8.
WIDE_ZSTD_WINDOW: Final = 2 * MIB
#: The default of --max-ratio: how many times larger a compressed stream may become. Real layers stay far below it.
MAX_RATIO: Final = 200
#: A compressed stream may expand to this size at any ratio, because a layer may contain a large file of zeros.
UNCHECKED_EXPANSION: Final = 1024 * MIB

# Lists of existing blobs ------------------------------------------------------------------------------------
#: One line of a list that `have` wrote: a digest, or the name of an origin, which may be a path.
MAX_HAVE_LINE: Final = 16 * KIB
#: Lines of one list, which is read as a stream: this many digests are 700 MiB.
MAX_HAVE_LINES: Final = 10_000_000
#: Origins and writers of lists that are kept for messages.
MAX_HAVE_HEADERS: Final = 100
#: Digests of one query: all that one transfer can have.
MAX_QUERIED_DIGESTS: Final = MAX_MANIFESTS + MAX_BLOBS

# Lists of images (`pull --images`) --------------------------------------------------------------------------
#: One line: names have at most some hundred characters, and a comment may follow.
MAX_IMAGE_LIST_LINE: Final = 4 * KIB
#: Lines: `MAX_IMAGES`, and as many comments and blank lines.
MAX_IMAGE_LIST_LINES: Final = 2 * MAX_IMAGES

# The remote command of --via --------------------------------------------------------------------------------
#: One line of the remote command's output; a longer line is handled in pieces.
MAX_REMOTE_LINE: Final = 64 * KIB
#: The remote command's results after it ends: a line for each image.
MAX_REMOTE_RESULTS: Final = 1 * MIB

# Signatures -------------------------------------------------------------------------------------------------
#: A file with a public key: an RSA key of 8,192 bits has 1.4 KB.
MAX_KEY_FILE: Final = 64 * KIB
#: A trusted root: that of the public Sigstore has 7 KB.
MAX_TRUSTED_ROOT: Final = 256 * KIB
#: The payload of a signature, or a Sigstore bundle: payloads have 300 bytes, bundles with proofs of a log 20 KB.
MAX_SIGNATURE_PAYLOAD: Final = 256 * KIB
#: Bytes of messages and signatures that are verified at once.
MAX_UNVERIFIED_SIGNATURES: Final = 1 * MIB
#: Signatures of the images of one transfer.
MAX_SIGNATURES: Final = MAX_REFERRERS
#: Seconds for the process that verifies signatures. For `MAX_UNVERIFIED_SIGNATURES` by one key it takes up to ten.
VERIFIER_TIMEOUT: Final = 300.0

# Configuration ---------------------------------------------------------------------------------------------
#: A configuration file, ours or containers' registries.conf.
MAX_CONFIG_FILE: Final = 1 * MIB
#: A file of `ocistream sync`: ten thousand entries have 1.5 MB.
MAX_SYNC_FILE: Final = 4 * MIB
#: Bytes of the manifests that a sync keeps for images that are still to be copied. Parsed they take some five times as
#: much.
MAX_PENDING_GRAPH_BYTES: Final = 1 * MIB
#: Blobs of which a sync remembers where it has written them: 100 bytes each.
MAX_TRACKED_BLOBS: Final = 8_192
#: Characters of a regular expression in such a file, and seconds of CPU time to match all tags with it: Python's `re`
#: matches a million tags in one second, and backtracks for hours with some expressions.
MAX_REGEX_LENGTH: Final = 1000
MAX_REGEX_SECONDS: Final = 10

# Registries ------------------------------------------------------------------------------------------------
#: The answer of a token server.
MAX_TOKEN_RESPONSE: Final = 128 * KIB
#: The body of an error answer; the rest is not read.
MAX_ERROR_BODY: Final = 64 * KIB
#: Redirects that one request may follow.
MAX_REDIRECTS: Final = 5
#: The longest Retry-After that is used, in seconds: a year. Longer ones make no difference.
MAX_RETRY_AFTER: Final = 365 * 86_400.0
#: Seconds from the first byte to the last byte of an answer's head.
RESPONSE_HEAD_TIMEOUT: Final = 60.0
#: Pages of one list.
MAX_PAGES: Final = 100
#: Tags that are searched for one similar to a tag that does not exist.
MAX_SUGGESTION_CANDIDATES: Final = 2_000
#: Tags of one repository: as many as `MAX_PAGES` pages of the usual size have.
MAX_TAGS: Final = 100_000
#: How much of a 200 answer to a Range request is read and discarded to reach the byte where the download broke. Beyond
#: this size, a new connection is not slower.
MAX_DISCARD: Final = 64 * MIB

#: Memory for upload bytes that a registry has not acknowledged, so that they can be sent again: bytes in socket buffers
#: and a proxy's. The blobs of a pipe share this memory; blobs that can be read again share half of it if their size is
#: unknown. It also limits the chunk size.
UPLOAD_MEMORY: Final = 8 * MIB
#: What a blob of a pipe has in any case, for example while the registry still commits the blob before.
MIN_REPLAY_MEMORY: Final = 1 * MIB
#: If a registry or proxy refuses chunks of this size as too large, it accepts none.
MIN_UPLOAD_CHUNK: Final = 256 * KIB

#: A blob that is at most this large is buffered: from a pipe, so that several such blobs are written at once; for a
#: registry, so that it is uploaded by one PUT. At 1 MiB, a push of layers of 1 MiB and of 20 MiB from a pipe takes more
#: than 48 MiB of memory.
MAX_BUFFERED_BLOB: Final = 256 * KIB

#: A blob that is at most this large may be sent again to a registry that lacks other blobs, instead of asked for.
MAX_RESENT_BLOB: Final = 64 * KIB

# Data of interrupted runs -----------------------------------------------------------------------------------
#: A smaller partial blob is not kept: resuming costs more than fetching it again.
MIN_PARTIAL_SIZE: Final = 1 * MIB
#: Partial blobs in a layout that were not resumed for this many seconds are deleted: 7 days.
MAX_PARTIAL_AGE: Final = 7 * 86_400.0

#: `gc` keeps unreferenced blobs of a layout for this many seconds after their last use. A pull or push in progress may
#: not have named its image yet.
GC_GRACE_PERIOD: Final = 3_600.0

# Locks of other processes ---------------------------------------------------------------------------------
#: Seconds to wait for the lock of a layout, and seconds until a notice about it. Any user who can read the directory
#: can hold the lock, so waiting must end. ocistream itself holds it for moments.
LOCK_TIMEOUT: Final = 60.0
LOCK_NOTICE_DELAY: Final = 3.0

#: Blobs that the remote side has in part and that a copy resumes: at most as many as were transferred at once.
MAX_RESUMABLE_BLOBS: Final = 256

# State of earlier runs -------------------------------------------------------------------------------------
#: The record of one upload, which is mostly its Location.
MAX_UPLOAD_RECORD: Final = 8 * KIB
#: A longer Location is not recorded; distribution's have some 400 characters.
MAX_UPLOAD_LOCATION: Final = 4 * KIB
#: Uploads that one run records at a time: each takes a file descriptor, of which a process often has 1,024.
MAX_OPEN_UPLOAD_RECORDS: Final = 256
#: An upload is not resumed after this many seconds: 7 days, after which distribution deletes it too (its configuration,
#: "uploadpurging").
MAX_UPLOAD_RECORD_AGE: Final = 7 * 86_400.0

# Clients of the embedded registry --------------------------------------------------------------------------
#: Uploads in progress. Each keeps its file open and locked, and a process often has 1,024 file descriptors.
MAX_UPLOADS: Final = 500
#: An upload without data for this many seconds counts as abandoned.
UPLOAD_IDLE_TIMEOUT: Final = 3_600.0
#: The same for an upload that has no bytes, if there are `MAX_UPLOADS`: otherwise clients that open uploads and leave
#: could keep all others from pushing for an hour.
EMPTY_UPLOAD_TIMEOUT: Final = 60.0
#: A connection without data for this many seconds is closed; a slow pipe may well pause for minutes.
CLIENT_IDLE_TIMEOUT: Final = 900.0
#: Seconds that a client may take to send an admitted request after an answer or the connection's start, and to send the
#: rest of an unwanted body. A client without the password keeps a connection no longer than this, however slowly it
#: sends and reads.
REQUEST_TIMEOUT: Final = 60.0
#: The first line of a request: a page of referrers has a digest and a media type in its URL.
MAX_REQUEST_LINE: Final = 64 * KIB
#: All headers of a request together: ours, Docker's and podman's have some hundred bytes.
MAX_REQUEST_HEAD: Final = 32 * KIB
#: Connections of `serve` at a time: each is a thread, and may have a buffer. For another one, `serve` closes the
#: connection that has waited longest, first among those without an admitted request. If none waits, the new one is
#: closed at once.
MAX_CLIENTS: Final = 500
#: A manifest or index above this size is large. A push of one waits until few others are in progress, and an answer
#: with one is sent from its file. Nearly all manifests are smaller.
LARGE_MANIFEST: Final = MAX_JSON_UNSPLIT
#: Concurrent pushes of large manifests. Each keeps the manifest's bytes in memory.
MAX_LARGE_PUSHES: Final = 2
#: Seconds that such a push waits for its turn, and seconds that it may then take to send the manifest.
LARGE_PUSH_QUEUE_TIMEOUT: Final = 300.0
LARGE_PUSH_TIMEOUT: Final = 60.0
#: Manifests that are parsed at once, for answers and for pushes. A second one would take memory and save no time:
#: Python parses one at a time.
MAX_CONCURRENT_PARSES: Final = 1
#: Seconds that a page for browsers waits for its turn, and seconds that its client may take to read it. Only one is
#: sent at a time: the graph of all images stays in memory meanwhile.
PAGE_TIMEOUT: Final = 300.0
#: Strings (media types, platforms, annotation keys) that share one object: how many, and the length of each.
MAX_INTERNED_STRINGS: Final = 1_000
MAX_INTERNED_LENGTH: Final = 255
#: Manifests listed by all indexes of a layout together, up to which the lists stay in memory: some 20 MiB.
MAX_CACHED_INDEX_ENTRIES: Final = 10 * MAX_LIST_ENTRIES
#: Blobs of a served directory whose verification is remembered: some 500 bytes each.
MAX_CACHED_BLOB_CHECKS: Final = MAX_LIST_ENTRIES
#: For a range from some byte to the end of an archive's blob, up to this much before it is read to verify the blob. On
#: a slow USB stick that takes seconds in which the client gets nothing.
MAX_VERIFIED_BEFORE_RANGE: Final = 512 * MIB
#: Divided by the number of connections when a body of a blob begins, this is the size of its buffer: at most
#: `CHUNK_SIZE`, as up to 16 connections have, and at least `DISCARD_BUFFER`. A later connection shrinks no buffer, so
#: 500 connections have at most 20 MiB.
CLIENT_BUFFERS: Final = 4 * MIB
#: Buffer for discarded request bodies: a client without access should cost little memory.
DISCARD_BUFFER: Final = 16 * KIB
#: File descriptors reserved for anything but connections and uploads.
RESERVED_FILE_DESCRIPTORS: Final = 64
#: The rest of a refused request's body is read up to this size, to keep the connection.
MAX_DRAINED: Final = 256 * KIB
#: One line of the chunked transfer coding: a size, and extensions, which clients do not use.
MAX_CHUNK_LINE: Final = 4 * KIB

# Streams ---------------------------------------------------------------------------------------------------
#: The size of chunks. 64 KiB costs more CPU for each byte; 1 MiB costs as much, and more memory for each thread.
CHUNK_SIZE: Final = 256 * KIB
#: The read size of a socket with one reader, which reads into two such buffers in turn. Compared with `CHUNK_SIZE` it
#: takes a quarter of the system calls.
READ_BUFFER: Final = 1 * MIB
#: If a socket delivers little at a time, reads are collected up to this size.
MIN_READ: Final = 64 * KIB
#: The kernel collects `CHUNK_SIZE` bytes of a fast body before a read returns, if the last ones took at most this many
#: seconds. The wait takes at most as long.
MAX_COLLECT_TIME: Final = 0.1
#: After this many written bytes the kernel is told to start writing them to disk, so that the final sync is short.
WRITEBACK_SIZE: Final = 16 * MIB
#: The size of the pipes at stdin and stdout: the most that Linux allows without privileges.
PIPE_SIZE: Final = 1 * MIB
#: Memory for prefetching, unless --memory says otherwise: the total stays below 48 MiB.
PREFETCH_MEMORY: Final = 8 * MIB
#: The rate of one connection is measured over this many bytes, or blobs if they are small. Less is not prefetched.
PREFETCH_WINDOW_SIZE: Final = 4 * MIB
PREFETCH_WINDOW_BLOBS: Final = 8
#: The most memory that --memory may give to prefetching.
MAX_PREFETCH_MEMORY: Final = 4096 * MIB
#: A smaller blob is hashed faster than another thread starts.
MIN_THREADED_HASH: Final = 1 * MIB
