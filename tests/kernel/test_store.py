"""The content-addressed store in the blob map."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from reconciler.kernel import layout, store
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.store import Manifest, ManifestFile, StoreError, digest_of
from reconciler.state.objects import Revision
from tests.kernel.kernelmaps import private_maps, small_arrays


@pytest.fixture
def maps() -> Iterator[Maps]:
    with small_arrays(), private_maps() as found:
        yield found


def put(maps: Maps, content: bytes) -> bytes:
    digest = digest_of(content)
    maps["blob"].put_many(*store.encode_blob(digest, content))
    return digest


@pytest.mark.parametrize("content", [b"", b"a", b"yaml: true\n" * 100_000, os.urandom(100_000)])
def test_blob_comes_back(maps: Maps, content: bytes) -> None:
    digest = put(maps, content)
    assert store.read_blob(maps, digest) == content
    assert list(store.stored_digests(maps)) == [digest]


def test_first_chunk_is_written_last_and_deleted_first() -> None:
    content = os.urandom(20_000)
    keys, values = store.encode_blob(digest_of(content), content)
    assert keys["chunk"].tolist() == [4, 3, 2, 1, 0]
    assert values["length"][0] < layout.BLOB_CHUNK
    assert store.blob_keys(digest_of(content), 5)["chunk"].tolist() == [0, 1, 2, 3, 4]


def test_missing_blob(maps: Maps) -> None:
    with pytest.raises(StoreError, match="there is none"):
        store.read_blob(maps, bytes(16))


def test_blob_without_its_first_chunk_is_none(maps: Maps) -> None:
    content = os.urandom(20_000)
    digest = put(maps, content)
    maps["blob"].delete(store.blob_keys(digest, 1))
    with pytest.raises(StoreError, match="there is none"):
        store.read_blob(maps, digest)
    assert store.stored_digests(maps)[digest]["chunk"].tolist() == [1, 2, 3, 4]


def test_missing_chunk(maps: Maps) -> None:
    digest = put(maps, os.urandom(20_000))
    maps["blob"].delete(store.blob_keys(digest, 3)[2:])
    with pytest.raises(StoreError, match="1 of 5 chunks are missing"):
        store.read_blob(maps, digest)


@pytest.mark.parametrize("where", [0, 2, 100])
def test_damaged_byte(maps: Maps, where: int) -> None:
    content = os.urandom(300)
    digest = put(maps, content)
    keys, values = maps["blob"].items()
    values[0]["data"][where] ^= 1
    maps["blob"].put(keys, values)
    try:
        found = store.read_blob(maps, digest)
    except StoreError:
        return
    assert found == content, "a bit that says nothing about the content"


def test_content_under_another_digest(maps: Maps) -> None:
    digest = digest_of(b"other")
    maps["blob"].put_many(*store.encode_blob(digest, b"content"))
    with pytest.raises(StoreError, match="digest"):
        store.read_blob(maps, digest)


def test_mad_chunk_count(maps: Maps) -> None:
    digest = put(maps, b"content")
    keys, values = maps["blob"].items()
    values["chunks"] = 0xFFFFFFFF
    maps["blob"].put(keys, values)
    with pytest.raises(StoreError, match="4294967295 chunks"):
        store.read_blob(maps, digest)


def test_manifest_and_its_files_come_back(maps: Maps) -> None:
    files = {"web.yaml": b"proxies: []\n", "dns.yaml": "proxies: [] # \u00fc\n".encode()}
    manifest = Manifest(tuple(ManifestFile(p, put(maps, c)) for p, c in files.items()), "f00d", "A <a@b>", "subject")
    digest = put(maps, store.encode_manifest(manifest))
    assert store.read_manifest(maps, digest) == manifest
    assert store.read_sources(maps, manifest) == files
    assert store.read_manifest(maps, b"") == Manifest()


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b"{}", b'{"files": [{"path": "a"}], "commit": null}'])
def test_what_is_no_manifest(maps: Maps, content: bytes) -> None:
    with pytest.raises(StoreError):
        store.read_manifest(maps, put(maps, content))


def test_revision_of_the_active_slot(maps: Maps) -> None:
    assert store.read_revision(maps) == Revision()
    wanted = Revision(7, 1_700_000_000_000_000_000, digest_of(b"m"))
    value = np.zeros(1, layout.revision_slots)
    value["slot"][:, 1] = store.encode_revision(wanted)
    maps["revision"].put(0, value)
    assert store.read_revision(maps) == Revision()
    switch = np.zeros(1, layout.control)
    switch["active"] = 1
    maps["control"].put(0, switch)
    assert store.read_revision(maps) == wanted


def test_pieces_packed_before_make_the_same_blob() -> None:
    chance = np.random.default_rng(3)
    content = b"".join(b"line %d\n" % number for number in chance.integers(0, 1 << 30, 60_000))
    packer = store.Packer()
    for edited in (content, content[:300_000] + b"x" + content[300_001:], content[:-1], b"short", content):
        packed = packer.pack(edited)
        assert packed == store.Packer().pack(edited)
        assert zlib.decompress(packed) == edited


def test_a_blob_is_whole_or_not_counted(maps: Maps) -> None:
    first, last, other = (put(maps, os.urandom(20_000)) for _ in range(3))
    stored = store.stored_digests(maps)
    assert whole(maps) == stored.keys() == {first, last, other}
    maps["blob"].delete_many(stored[first][:1])
    maps["blob"].delete_many(stored[last][-1:])
    assert whole(maps) == {other}
    assert store.whole_digests(maps, {}, store.Seen()) == frozenset()


def whole(maps: Maps, seen: store.Seen | None = None, *, as_known: bool = False) -> frozenset[bytes]:
    return store.whole_digests(maps, store.stored_digests(maps), seen or store.Seen(), as_known=as_known)


@pytest.mark.parametrize("field", ["chunks", "length", "data"])
@pytest.mark.parametrize("chunk", [0, 2, 4])
def test_a_changed_bit_is_seen(maps: Maps, field: str, chunk: int) -> None:
    """Also by who has found it whole before."""
    digest, other = put(maps, os.urandom(20_000)), put(maps, b"other")  # five chunks, the last one not full
    seen = store.Seen()
    assert whole(maps, seen) == {digest, other}
    key = store.blob_keys(digest, 5)[chunk : chunk + 1]
    value = maps["blob"].get_many(key)[1]
    number = np.atleast_2d(value[field])
    number[0, -1] ^= 1
    value[field] = number.reshape(value[field].shape)
    maps["blob"].put_many(key, value)
    assert whole(maps) == {other}
    assert whole(maps, seen) == {other}


def test_what_was_seen_whole_is_not_unpacked_again(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_AT_ONCE", 8)
    digests, seen = {put(maps, os.urandom(9_000)) for _ in range(20)}, store.Seen()
    assert whole(maps, seen) == digests
    monkeypatch.setattr(store, "_is_whole", lambda *_: pytest.fail("unpacked"))
    assert whole(maps, seen) == digests
    monkeypatch.setattr(Map, "get_many", lambda *_: pytest.fail("read"))
    assert whole(maps, seen, as_known=True) == digests


def test_what_was_damaged_is_looked_at_again(maps: Maps) -> None:
    """Its repair need not change the number of its chunks."""
    content, seen = os.urandom(9_000), store.Seen()
    digest = put(maps, content)
    keys, values = store.encode_blob(digest, content)
    values["data"][1, 0] ^= 1
    maps["blob"].put_many(keys, values)
    assert not whole(maps, seen)
    put(maps, content)
    assert whole(maps, seen, as_known=True) == {digest}
