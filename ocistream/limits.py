"""Limits on untrusted input, buffers, timeouts and ages: one table of numbers.

Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Documents -------------------------------------------------------------------------------------------------
#: A manifest, an image index, `index.json` or `manifest.json`. Registries take 4 MiB as well
#: (distribution-spec, "Pushing Manifests"), so nothing that can be pushed is lost.
MAX_MANIFEST: Final = 4 * MIB
#: An image configuration, which is only parsed for its platform and diff_ids.
MAX_CONFIG: Final = 8 * MIB
#: One up to this is read as JSON whenever it moves: it is held for that, beside what an upload holds. Real ones stay
#: under a tenth of it; `verify` reads them all.
MAX_PARSED_CONFIG: Final = 2 * MIB
#: `oci-layout` holds one short field.
MAX_LAYOUT_FILE: Final = 4 * KIB
#: Nesting of JSON objects and arrays; real documents stay under ten.
MAX_JSON_DEPTH: Final = 64
#: Items of one JSON document, counted by its commas and brackets: four megabytes of `[],[],` would otherwise
#: become a hundred of Python's lists. An index of `MAX_LISTED` images, each with a platform and some annotations,
#: has half as many.
MAX_JSON_ITEMS: Final = 250_000
#: A JSON document up to this is parsed whole, a larger one piece by piece.
MAX_JSON_UNSPLIT: Final = 64 * KIB
#: Elements of a list are parsed together up to this many bytes, as objects some twenty times as many.
MAX_JSON_GROUP: Final = 4 * KIB
#: One such piece, of which Python makes a text and a string of the same size.
MAX_JSON_PIECE: Final = MAX_MANIFEST
#: One that is not all ASCII: a single emoji makes Python take four bytes for each character of both.
MAX_JSON_NON_ASCII_PIECE: Final = 512 * KIB
#: Items of one such piece, and members of the outermost object.
MAX_JSON_PIECE_ITEMS: Final = 20_000
#: Entries of an `index.json` or an image index, layers of a manifest.
MAX_LIST_ENTRIES: Final = 10_000
#: Indexes within indexes. A cycle is impossible by digest, but a long chain costs a request each.
MAX_INDEX_DEPTH: Final = 8
#: Images, by name, in one transfer: each is walked on its own.
MAX_IMAGES: Final = 10_000
#: What all images together need, counted once for each: a thousand may name one index of thousands.
MAX_REQUIRED_DESCRIPTORS: Final = 500_000
#: Manifests among which platforms are chosen, counted once for each index that is an image.
MAX_PLATFORM_CANDIDATES: Final = 10 * MAX_LIST_ENTRIES
#: Manifests and indexes in one transfer: an index of `MAX_LISTED`, and some above it.
MAX_MANIFESTS: Final = MAX_LIST_ENTRIES + 100
#: Content in the `data` of one descriptor (image-spec, descriptor.md), in bytes, and how many such blobs are kept of a
#: transfer: BuildKit writes two bytes, the empty config.
MAX_EMBEDDED: Final = 4 * KIB
MAX_EMBEDDED_BLOBS: Final = 64
#: Configs and layers in one transfer, each counted once: a config and a layer for each of `MAX_LISTED` images.
MAX_BLOBS: Final = 2 * MAX_LIST_ENTRIES
#: Signatures, SBOMs and the like that hang on the images of one transfer: one for each image of a great index. All that
#: lists say hangs there counts once more by itself, since each is asked for, whatever comes of it.
MAX_REFERRERS: Final = MAX_LIST_ENTRIES
#: How deep they hang on each other, in a registry as in an archive: each level costs requests there, and here another
#: look at all that may hang on something.
MAX_REFERRER_DEPTH: Final = 8
#: All manifests of one transfer together, since they are held until the end (promise 3: 48 MiB in all).
MAX_GRAPH_BYTES: Final = 8 * MIB
#: The same, with twice the size of the one that is being parsed (see `MAX_JSON_PIECE`): one of `MAX_MANIFEST` beside
#: two MiB of others, or any number of small ones.
MAX_GRAPH_MEMORY: Final = MAX_GRAPH_BYTES + MAX_MANIFEST + 2 * MIB

# Archives --------------------------------------------------------------------------------------------------
#: One PAX extended header (CVE-2025-8194 came from believing such sizes).
MAX_PAX_HEADER: Final = 1 * MIB
#: Records of one PAX header. Writers use up to ten, and one for each extended attribute; a MiB has room for 200,000.
MAX_PAX_RECORDS: Final = 1_000
#: A name or a link's target from a GNU long name, a GNU long link or a PAX header: PATH_MAX.
MAX_LONG_NAME: Final = 4 * KIB
#: Headers that only say something of the next entry, before one entry: its pax header, a global one, a long name and
#: a long link are the most that there are. Without end they would never become one.
MAX_EXTENSION_HEADERS: Final = 16
#: Directories in one name: each costs time, and 4 KiB have room for 2,000. An image archive has three.
MAX_NAME_DEPTH: Final = 100
#: All names together of what may belong to a docker-archive, with the links' targets.
MAX_NAME_BYTES: Final = 1 * MIB
#: Small JSON blobs that pass before `index.json` are held up to this in all; over it they are handed on.
MAX_BUFFERED_JSON: Final = 6 * MIB
#: Zeros behind the end of an archive: they fill its last record, of which GNU tar's `--blocking-factor` and tapes have
#: some MiB. Inside gzip a GiB of them is a MiB.
MAX_TRAILING_ZEROS: Final = 64 * MIB
#: Entries of a tar, the skipped ones included: `MAX_MANIFESTS`, `MAX_BLOBS`, and as many again of others.
MAX_ENTRIES: Final = 50_000
#: Headers that only describe the next entry, and records of PAX headers, in one archive: five for each entry. GNU tar
#: writes four, a header with three times. Each costs microseconds, and gzip makes almost nothing of them.
MAX_TOTAL_PAX_RECORDS: Final = 5 * MAX_ENTRIES

#: Volumes of one archive. Each that is written, or read beside others, takes a file descriptor, of which a process
#: often has 1,024.
MAX_VOLUMES: Final = 500
#: Lines about blobs that are continued from one to the next: no blob that is has a volume in common with more than one
#: other, so that there are two parts in each at the most, and a line above those of each blob.
MAX_PART_LINES: Final = 3 * MAX_VOLUMES
#: Archives and layouts that are read as one, for the same reason.
MAX_INPUTS: Final = MAX_VOLUMES

# Compressed content ----------------------------------------------------------------------------------------
#: The window of a zstd frame: what `zstd --long` of its greatest usual width needs. A frame may ask for terabytes.
MAX_ZSTD_WINDOW: Final = 128 * MIB
#: Above this, streams are unpacked one at a time: zstd's usual level has 2 MiB, the highest ones 8.
WIDE_ZSTD_WINDOW: Final = 2 * MIB
#: How much larger than itself a compressed stream may become, unless --max-ratio says otherwise: well above
#: what layers reach.
MAX_RATIO: Final = 200
#: So much may come out of any compressed stream, however small: a file of zeros is no attack.
UNCHECKED_EXPANSION: Final = 1024 * MIB

# Lists of what is there ------------------------------------------------------------------------------------
#: One line of a list that `have` wrote: a digest, or the name of an origin, which may be a path.
MAX_HAVE_LINE: Final = 16 * KIB
#: Lines of one list, which is read as it comes: so many digests are 700 MiB.
MAX_HAVE_LINES: Final = 10_000_000
#: Origins and writers of lists that are kept to be shown.
MAX_HAVE_HEADERS: Final = 100
#: Digests that may be asked for at once: all that one transfer can have.
MAX_QUERIED_DIGESTS: Final = MAX_MANIFESTS + MAX_BLOBS

# The far side of --via --------------------------------------------------------------------------------------
#: One line that is said there; what is longer comes in pieces.
MAX_REMOTE_LINE: Final = 64 * KIB
#: What is printed there when all is done: a line an image.
MAX_REMOTE_RESULTS: Final = 1 * MIB

# Configuration ---------------------------------------------------------------------------------------------
#: A configuration file, ours or containers' registries.conf.
MAX_CONFIG_FILE: Final = 1 * MIB
#: A file of `ocistream sync`: ten thousand entries have 1.5 MB.
MAX_SYNC_FILE: Final = 4 * MIB
#: Bytes of manifests that a sync holds of images that are still to move: parsed they take some five times as much.
MAX_PENDING_GRAPH_BYTES: Final = 1 * MIB
#: Blobs of which a sync knows where it has put them: 100 bytes each.
MAX_TRACKED_BLOBS: Final = 32_768
#: Steps in which a regular expression of such a file is matched with one tag: a usual one takes some hundreds.
MAX_REGEX_STEPS: Final = 1_000_000

# Registries ------------------------------------------------------------------------------------------------
#: A token server's answer.
MAX_TOKEN_RESPONSE: Final = 128 * KIB
#: The body of an error answer: what is beyond this is not read.
MAX_ERROR_BODY: Final = 64 * KIB
#: Redirects that one request may follow.
MAX_REDIRECTS: Final = 5
#: The longest pause that an answer may ask for, in seconds: what is longer is as good as for ever. A year.
MAX_RETRY_AFTER: Final = 365 * 86_400.0
#: How long the head of an answer may take from its first byte to its last, in seconds.
RESPONSE_HEAD_TIMEOUT: Final = 60.0
#: Pages of one list.
MAX_PAGES: Final = 100
#: Tags among which one is looked for that may have been meant.
MAX_SUGGESTION_CANDIDATES: Final = 2_000
#: Tags of one repository: as many as that many pages of the usual size have.
MAX_TAGS: Final = 100_000
#: How much of a 200 answer to a Range request is read and thrown away to get where the download broke;
#: beyond it, starting again on another connection is no cheaper.
MAX_DISCARD: Final = 64 * MIB

#: What uploads hold of that which a registry has not acknowledged, so that it can be sent again: all of it where there
#: is one pipe to read from, else half of it, shared by the blobs that move at once. So no chunk is larger.
UPLOAD_MEMORY: Final = 8 * MIB
#: A registry or proxy that refuses chunks of this size as too large takes none.
MIN_UPLOAD_CHUNK: Final = 256 * KIB

# What an interruption leaves -------------------------------------------------------------------------------
#: What has fewer bytes is not kept to be gone on with: it costs more to know of than to fetch.
MIN_PARTIAL_SIZE: Final = 1 * MIB
#: Parts of blobs in a layout that nobody has gone on with for so many seconds are removed: 7 days.
MAX_PARTIAL_AGE: Final = 7 * 86_400.0

#: What no image in a layout needs is spared for so many seconds after its last use: a pull or push into it may be
#: under way that has not named its image yet.
GC_GRACE_PERIOD: Final = 3_600.0

# Locks of others -------------------------------------------------------------------------------------------
#: How long, in seconds, the lock of a layout is waited for, which whoever can read the directory can hold; and after
#: how long that is said. We hold it for moments.
LOCK_TIMEOUT: Final = 60.0
LOCK_NOTICE_DELAY: Final = 3.0
#: The same of the state directory, without which all goes on.
STATE_LOCK_TIMEOUT: Final = 2.0

#: Blobs of which the far side of a copy has the beginning, and which are gone on with: there are as many as were under
#: way at once.
MAX_RESUMABLE_BLOBS: Final = 256

# State of earlier runs -------------------------------------------------------------------------------------
#: The file of what was learnt of hosts, and the hosts in it: some hundred bytes each.
MAX_STATE_FILE: Final = 256 * KIB
MAX_STATE_HOSTS: Final = 500
#: After so many seconds a fact is forgotten: 30 days.
MAX_STATE_AGE: Final = 30 * 86_400.0
#: What is remembered of one upload, of which nearly all is its Location.
MAX_UPLOAD_RECORD: Final = 8 * KIB
#: A Location that is longer is not remembered; distribution's have some 400 characters.
MAX_UPLOAD_LOCATION: Final = 4 * KIB
#: Uploads that one run remembers at a time: each takes a file descriptor, of which a process often has 1,024.
MAX_OPEN_UPLOAD_RECORDS: Final = 256
#: After so many seconds an upload is not asked for any more: 7 days, after which distribution throws it away too
#: (its configuration, "uploadpurging").
MAX_UPLOAD_RECORD_AGE: Final = 7 * 86_400.0

# Clients of the embedded registry --------------------------------------------------------------------------
#: Uploads under way at once: each takes a file descriptor, of which a process often has 1,024 (`serve.room`).
MAX_UPLOADS: Final = 500
#: After so many seconds without a byte an upload is taken for abandoned.
UPLOAD_IDLE_TIMEOUT: Final = 3_600.0
#: After so many seconds of a client's silence its connection is closed; a slow pipe may well pause for minutes.
CLIENT_IDLE_TIMEOUT: Final = 900.0
#: How long, in seconds, a client may take from an answer's end (or the connection's beginning) to a request that is
#: admitted, and to send the rest of an unwanted body. Without the password a client keeps a connection no longer than
#: this, whatever it sends and however slowly it reads the refusals.
REQUEST_TIMEOUT: Final = 60.0
#: Headers of a request, all together, as they are sent: ours, Docker's and podman's have some hundred bytes.
MAX_REQUEST_HEAD: Final = 32 * KIB
#: Connections that `serve` has at a time: each is a thread, and may have a buffer. For a further one `serve` closes the
#: connection that has waited longest, first among those without any admitted request. If none waits, the new one is
#: closed at once.
MAX_CLIENTS: Final = 500
#: A manifest or index of more bytes is large: a push of one waits until few others are under way, and an answer with
#: one is sent from its file. Nearly all images' are smaller.
LARGE_MANIFEST: Final = MAX_JSON_UNSPLIT
#: Pushes of large manifests at once. Each holds the manifest's bytes.
MAX_LARGE_PUSHES: Final = 4
#: How long, in seconds, such a push waits for its turn, and then may take to send the manifest.
LARGE_PUSH_QUEUE_TIMEOUT: Final = 300.0
LARGE_PUSH_TIMEOUT: Final = 60.0
#: Manifests that are parsed at once, for answers and for pushes.
MAX_CONCURRENT_PARSES: Final = 2
#: Of so many words (media types, platforms, keys of annotations) of so many characters one object serves for all.
MAX_INTERNED_STRINGS: Final = 1_000
MAX_INTERNED_LENGTH: Final = 255
#: What all indexes of a layout list, one after the other, is remembered up to so many manifests: some 20 MiB.
MAX_CACHED_INDEX_ENTRIES: Final = 10 * MAX_LIST_ENTRIES
#: Blobs of a served directory of which it is remembered whether they were found right: some 500 bytes each.
MAX_CACHED_BLOB_CHECKS: Final = MAX_LIST_ENTRIES
#: Of an archive's blob, which is asked for from some byte to its end, so much before that is read to verify it: from a
#: slow stick that takes seconds, in which the client gets nothing.
MAX_VERIFIED_BEFORE_RANGE: Final = 512 * MIB
#: What is read at a time of what is thrown away: who is not let in is to cost little.
DISCARD_BUFFER: Final = 16 * KIB
#: File descriptors that are left for everything else than connections and uploads.
RESERVED_FILE_DESCRIPTORS: Final = 64
#: What is still to come of a refused request's body is read, up to this, to keep the connection.
MAX_DRAINED: Final = 256 * KIB
#: One line of the chunked transfer coding: a size, and extensions that nobody uses.
MAX_CHUNK_LINE: Final = 4 * KIB

# Streams ---------------------------------------------------------------------------------------------------
#: The unit in which bytes flow. 64 KiB costs more CPU a byte; 1 MiB costs as much, and more memory a thread.
CHUNK_SIZE: Final = 256 * KIB
#: So much is asked of a socket at a time by who reads one alone, and a second such page is read into meanwhile.
READ_BUFFER: Final = 1 * MIB
#: Of a socket that gives little at a time, so much is waited for before it is handed on.
MIN_READ: Final = 64 * KIB
#: So much is written to a file before the disk is told to begin with it.
WRITEBACK_SIZE: Final = 16 * MIB
#: What a pipe of ours is grown to: the most that Linux allows without privileges.
PIPE_SIZE: Final = 1 * MIB
#: What a transfer may fetch ahead of what it hands on, unless --memory says otherwise: all of it stays below 48 MiB.
PREFETCH_MEMORY: Final = 8 * MIB
#: The most that --memory may let a transfer fetch ahead of what it hands on.
MAX_PREFETCH_MEMORY: Final = 4096 * MIB
#: A blob of fewer bytes is hashed sooner than another thread would begin to.
MIN_THREADED_HASH: Final = 1 * MIB
