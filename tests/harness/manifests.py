"""Hypothesis strategies for manifests and their parts."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st

from backupd.format import SnapshotId
from backupd.format.manifest import Manifest, PackEntry, SnapshotKind, SourceFacts, Writer
from backupd.format.pack import MAX_ENCRYPTED_PACK_BYTES, MAX_PACK_BYTES
from harness.packs import pack_entry

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.integers(0, (1 << 63) - 1)
int32s = st.integers(-(1 << 31), (1 << 31) - 1)
texts = st.text(max_size=20)
snapshot_ids = st.builds(
    SnapshotId.new,
    st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(0, (1 << 32) - 1),
)
manifests = st.builds(
    Manifest,
    id=snapshot_ids,
    sequence=st.integers(1, (1 << 53) - 1),
    base=st.none() | snapshot_ids,
    database=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
    kind=st.sampled_from(SnapshotKind),
    tags=st.lists(texts, max_size=3).map(tuple),
    page_size=st.sampled_from([512, 4096, 65536]),
    page_count=st.integers(0, 1 << 26),
    changed_pages=counts,
    stored_bytes=counts,
    image_digest=digests,
    packs=st.lists(
        st.builds(
            PackEntry,
            sha256=digests,
            stored_bytes=st.integers(1, MAX_ENCRYPTED_PACK_BYTES),
            pages=st.integers(1, 32768),
            encryption=st.just("age"),
        )
        | st.builds(pack_entry, digests, stored_bytes=st.integers(1, MAX_PACK_BYTES), pages=st.integers(1, 32768)),
        max_size=3,
    ).map(tuple),
    page_map=st.text(),
    source=st.builds(
        SourceFacts,
        journal_mode=texts,
        encoding=texts,
        free_pages=counts,
        schema_version=int32s,
        user_version=int32s,
        application_id=int32s,
        sqlite_version=texts,
        tables=st.none() | st.lists(texts, max_size=3).map(tuple),
        schema_digest=st.none() | digests,
        alembic_revisions=st.none() | st.lists(texts, max_size=3).map(tuple),
    ),
    writer=st.builds(
        Writer,
        id=texts,
        host=texts,
        path=texts,
        uid=counts,
        gid=counts,
        mode=st.integers(0, 0o7777),
        backupd_version=texts,
    ),
)
