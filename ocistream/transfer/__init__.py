"""Copy images from a source to a destination, and verify them: the engine of every command that moves images.

Knows no store, terminal or network. `Copy` and `verify` are imported from their modules.

A `Source` resolves a `Graph` and yields `Blob`s, each of which can be opened at any byte. A `Destination` tells with
`stored` what it has, and stores a blob with `write`. Between them, `Copy` decides what moves, and each blob becomes a
`VerifiedBlob`: its last byte comes only if its size and digest are right. Three capabilities are optional: to mount, to
store a blob of unknown digest, and to read a small blob back. What else differs is in `Traits`.

Why it is not simpler:

- The destination chooses the byte at which it opens a blob, and the blob says only which bytes the source has.
  A tar finds what an earlier run left of an entry when it comes to it, not when it is asked in bulk.
- Mirrors and the cache are wrapped around a repository, not around a source: manifests and referrers pass through them
  too. `RecoverableBlob` tells them that bytes were wrong. To hash there as well would cost a second SHA-256.
- A registry that lacks many blobs is not asked for each small one: a question takes as long as a part of the upload. So
  `stored` may leave out small blobs if the caller asks it to be quick. Otherwise its answer is certain.

`inspection.py` and `inventory_page.py` only read: they show what a location has, as text or as a page.
"""
