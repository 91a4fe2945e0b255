"""What is applied, kept in the kernel: a content-addressed store of files and manifests, and the revision.

A blob is compressed with zlib and cut into chunks. Chunk 0 is written last: a blob without it is none. Readers check
the digest, so that a blob is what it was or an error, never something else.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.maps import Maps
from reconciler.state.objects import Revision

DIGEST_BYTES: Final = 16
NO_DIGEST: Final = bytes(DIGEST_BYTES)
MAX_BLOB_BYTES: Final = 256 << 20
"""More than this comes out of no blob: a damaged one can't fill the memory."""


class StoreError(KernelError):
    """A blob is missing, incomplete or damaged."""

    def __init__(self, digest: bytes, detail: str) -> None:
        super().__init__("read", f"blob {digest.hex()}", detail=detail)


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """An applied file: its path below the configuration directory and the digest of its content."""

    path: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a revision was made from. The commit's fields are None outside a git work tree."""

    files: tuple[ManifestFile, ...] = ()
    commit: str | None = None
    author: str | None = None
    subject: str | None = None


def digest_of(content: bytes | memoryview) -> bytes:
    """The name of a blob: the first half of its SHA-256."""
    return hashlib.sha256(content).digest()[:DIGEST_BYTES]


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON: the same manifest always has the same digest."""
    document = {
        "files": [{"path": each.path, "digest": each.digest.hex()} for each in manifest.files],
        "commit": manifest.commit,
        "author": manifest.author,
        "subject": manifest.subject,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decode_manifest(content: bytes) -> Manifest:
    """The inverse of :func:`encode_manifest`. Raises ValueError for anything else."""
    try:
        return _decoded(content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a manifest: {error!r}") from error


@lru_cache(maxsize=1)  # an edit asks for it seven times, and it may name a thousand files
def _decoded(content: bytes) -> Manifest:
    document = json.loads(content)
    files = tuple(ManifestFile(str(each["path"]), bytes.fromhex(each["digest"])) for each in document["files"])
    return Manifest(files, document["commit"], document["author"], document["subject"])


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a content, compressed. ``checksum``: its Adler-32."""

    size: int
    packed: bytes
    checksum: int


class Packer:
    """Compresses, as zlib does, and remembers the pieces of what it has compressed last: those that have not changed
    need not be compressed again."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Piece] = {}

    def pack(self, content: bytes) -> bytes:
        """``content`` as a stream in zlib's format (RFC 1950), each piece of it ended by a full flush."""
        if len(content) <= _PIECE:
            return zlib.compress(content, _LEVEL)
        pieces: dict[bytes, _Piece] = {}
        parts, checksum = [_HEADER], _ADLER_OF_NOTHING
        for start in range(0, len(content), _PIECE):
            part = memoryview(content)[start : start + _PIECE]
            digest = digest_of(part)
            piece = self._known.get(digest) or _Piece(len(part), _deflated(part), zlib.adler32(part))
            pieces[digest], checksum = piece, _joined(checksum, piece)
            parts.append(piece.packed)
        self._known = pieces
        return b"".join((*parts, _END, checksum.to_bytes(4, "big")))


_PIECE: Final = 128 << 10
_LEVEL: Final = 6
_HEADER: Final = b"\x78\x9c"  # deflate with a window of 32 KiB
_END: Final = b"\x03\x00"  # an empty last block
_ADLER_OF_NOTHING: Final = 1
_ADLER_BASE: Final = 65521


def _joined(checksum: int, piece: _Piece) -> int:
    """The Adler-32 (RFC 1950, 8.2) of what has ``checksum`` with the piece behind it."""
    first, second = checksum & 0xFFFF, checksum >> 16
    low, high = piece.checksum & 0xFFFF, piece.checksum >> 16
    return (second + high + piece.size * (first - 1)) % _ADLER_BASE << 16 | (first + low - 1) % _ADLER_BASE


def _deflated(piece: memoryview) -> bytes:
    """A part of a raw deflate stream that refers to nothing before it."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(piece) + compressor.flush(zlib.Z_FULL_FLUSH)


def encode_blob(digest: bytes, content: bytes, packer: Packer | None = None) -> tuple[Array, Array]:
    """Keys and values for the blob map, in the order in which they are to be written: chunk 0 last."""
    packed = (packer or Packer()).pack(content)
    count = -(-len(packed) // layout.BLOB_CHUNK)
    keys, values = np.zeros(count, layout.blob_key), np.zeros(count, layout.blob_chunk)
    for place, chunk in enumerate(reversed(range(count))):
        part = packed[chunk * layout.BLOB_CHUNK : (chunk + 1) * layout.BLOB_CHUNK]
        keys[place]["digest"] = np.frombuffer(digest, np.uint8)
        keys[place]["chunk"] = chunk
        values[place]["chunks"], values[place]["length"] = count, len(part)
        values[place]["data"][: len(part)] = np.frombuffer(part, np.uint8)
    return keys, values


def blob_keys(digest: bytes, count: int) -> Array:
    """The keys of a blob of ``count`` chunks, chunk 0 first: deleting in this order leaves no half blob."""
    keys = np.zeros(count, layout.blob_key)
    keys["digest"] = np.frombuffer(digest, np.uint8)
    keys["chunk"] = np.arange(count)
    return keys


def read_blob(maps: Maps, digest: bytes) -> bytes:
    """The content stored under a digest. Raises :class:`StoreError`."""
    found, first = maps["blob"].get_many(blob_keys(digest, 1))
    if not found[0]:
        raise StoreError(digest, "there is none")
    count = int(first[0]["chunks"])
    if not 0 < count <= maps["blob"].spec.max_entries:
        raise StoreError(digest, f"says it has {count} chunks")
    found, values = maps["blob"].get_many(blob_keys(digest, count))
    if not found.all():
        raise StoreError(digest, f"{int((~found).sum())} of {count} chunks are missing")
    return _content(digest, values)


def _content(digest: bytes, chunks: Array) -> bytes:
    """What a blob's chunks hold. Raises :class:`StoreError`."""
    packed = b"".join(bytes(value["data"][: value["length"]]) for value in chunks)
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, MAX_BLOB_BYTES)
    except zlib.error as error:
        raise StoreError(digest, str(error)) from error
    if not unpacking.eof or unpacking.unused_data:
        raise StoreError(digest, "it does not end where it says")
    if digest_of(content) != digest:
        raise StoreError(digest, f"its content has the digest {digest_of(content).hex()}")
    return content


def read_revision(maps: Maps) -> Revision:
    """What is applied now. ``manifest`` is empty if there is none."""
    active = int(maps["control"].items()[1][0]["active"]) & 1
    return decode_revision(maps["revision"].items()[1][0]["slot"][active])


def decode_revision(value: Any) -> Revision:
    """One slot of the revision map."""
    manifest = bytes(value["manifest"])
    return Revision(int(value["number"]), int(value["applied_ns"]), b"" if manifest == NO_DIGEST else manifest)


def encode_revision(revision: Revision) -> Array:
    """The inverse of :func:`decode_revision`, as an array of one."""
    value = np.zeros(1, layout.revision)
    value["number"], value["applied_ns"] = revision.number, revision.applied_ns
    value["manifest"] = np.frombuffer(revision.manifest or NO_DIGEST, np.uint8)
    return value


def read_manifest(maps: Maps, digest: bytes) -> Manifest:
    """The manifest stored under a digest; the empty one for the empty digest. Raises :class:`StoreError`."""
    if not digest:
        return Manifest()
    try:
        return decode_manifest(read_blob(maps, digest))
    except ValueError as error:
        raise StoreError(digest, str(error)) from error


def read_sources(maps: Maps, manifest: Manifest) -> Mapping[str, bytes]:
    """Path -> content of every file of a manifest. Raises :class:`StoreError`."""
    return {each.path: read_blob(maps, each.digest) for each in manifest.files}


def stored_digests(maps: Maps) -> dict[bytes, Array]:
    """Every digest the map has chunks of, complete or not, with the keys of those chunks, chunk 0 first."""
    keys = maps["blob"].keys()
    digests = np.ascontiguousarray(keys["digest"]).view(f"V{DIGEST_BYTES}").reshape(-1)
    _, numbers = np.unique(digests, return_inverse=True)
    keys, numbers = keys[order := np.lexsort((keys["chunk"], numbers))], numbers[order]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    return {bytes(keys[start]["digest"]): keys[start:stop] for start, stop in pairwise([*starts, len(keys)])}


@dataclass(slots=True)
class Seen:
    """What was read of blobs: ``counts`` how many chunks there were of each, and ``raw``, of those that held what they
    are to, a digest of their chunks, which need not be unpacked again as long as they are the same."""

    counts: dict[bytes, int] = field(default_factory=dict)
    raw: dict[bytes, bytes] = field(default_factory=dict)


def whole_digests(maps: Maps, stored: Mapping[bytes, Array], seen: Seen, *, as_known: bool = False) -> frozenset[bytes]:
    """Those of :func:`stored_digests` that hold what they are to, chunk for chunk. ``seen``: what was found before, and
    then what is found now. ``as_known``: what has as many chunks as then is taken for what it was then."""
    counts = {digest: len(keys) for digest, keys in stored.items()}
    known = {each for each in seen.raw if seen.counts[each] == counts.get(each)} if as_known else set[bytes]()
    fresh = {digest: keys for digest, keys in stored.items() if digest not in known}
    raw = {digest: seen.raw[digest] for digest in known}
    for digest, chunks in _chunks(maps, fresh):
        now = hashlib.sha256(chunks.tobytes()).digest()
        if seen.raw.get(digest) == now or _is_whole(digest, chunks):
            raw[digest] = now
    seen.counts, seen.raw = counts, raw
    return frozenset(raw)


def _is_whole(digest: bytes, chunks: Array) -> bool:
    """To the last bit, also of those that no reader looks at."""
    last = int(chunks[-1]["length"])
    if (chunks["chunks"] != len(chunks)).any() or (chunks[:-1]["length"] != layout.BLOB_CHUNK).any():
        return False
    if last > layout.BLOB_CHUNK or chunks[-1]["data"][last:].any():
        return False
    try:
        _content(digest, chunks)
    except StoreError:
        return False
    return True


_AT_ONCE: Final = 256
"""So many chunks are read with one call: a megabyte."""


def _chunks(maps: Maps, stored: Mapping[bytes, Array]) -> Iterator[tuple[bytes, Array]]:
    """The chunks of each, but of those that lack some."""
    together: list[tuple[bytes, Array]] = []
    count = 0
    for digest, keys in stored.items():
        if keys[0]["chunk"] or int(keys[-1]["chunk"]) != len(keys) - 1:
            continue
        together.append((digest, keys))
        count += len(keys)
        if count >= _AT_ONCE:
            yield from _read(maps, together)
            together, count = [], 0
    yield from _read(maps, together)


def _read(maps: Maps, blobs: list[tuple[bytes, Array]]) -> Iterator[tuple[bytes, Array]]:
    if not blobs:
        return
    found, values = maps["blob"].get_many(np.concatenate([keys for _, keys in blobs]))
    at = 0
    for digest, keys in blobs:
        part = slice(at, at + len(keys))
        at += len(keys)
        if found[part].all():
            yield digest, values[part]
