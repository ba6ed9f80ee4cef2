"""The SQL of the ledger: its tables, and the joins that compare what the log says with what the indices hold.

The state of an image is a join of registers of which the newest writer wins: `content` (of the newest upload), `tags`
and `metadata` (of the newest upload, or update that gives them) and `deleted`. A deletion hides what is older.
"""

from __future__ import annotations

_EVENT = """
    partition INTEGER, offset INTEGER, image_id TEXT, version INTEGER, kind INTEGER, tags INTEGER, metadata INTEGER,
    busy INTEGER
"""

SCHEMA = f"""
CREATE TABLE parameters (topic TEXT, known_from INTEGER);
CREATE TABLE events ({_EVENT}, PRIMARY KEY (partition, offset)) WITHOUT ROWID;
CREATE TABLE returns ({_EVENT});
CREATE TABLE waiting (partition INTEGER, offset INTEGER);
CREATE TABLE carried (image_id TEXT, version INTEGER);
CREATE TABLE letters (
    id TEXT, partition INTEGER, offset INTEGER, origin_topic TEXT, origin_partition INTEGER, origin_offset INTEGER,
    image_id TEXT, version INTEGER, code TEXT
);
CREATE TABLE closed (id TEXT, partition INTEGER, offset INTEGER, action TEXT);
CREATE TABLE images (
    id TEXT, place INTEGER, image_id TEXT, content INTEGER, tags INTEGER, metadata INTEGER, deleted INTEGER,
    objects INTEGER, visible INTEGER, seq_no INTEGER, primary_term INTEGER, PRIMARY KEY (id, place)
) WITHOUT ROWID;
CREATE TABLE objects (
    id TEXT, place INTEGER, image_id TEXT, ordinal INTEGER, content INTEGER, revision INTEGER, seq_no INTEGER,
    primary_term INTEGER, PRIMARY KEY (id, place)
) WITHOUT ROWID;
CREATE TABLE findings (kind TEXT, document TEXT, image_id TEXT, why TEXT);
CREATE TABLE surplus_images (id TEXT, place INTEGER, seq_no INTEGER, primary_term INTEGER);
CREATE TABLE surplus_objects (id TEXT, place INTEGER, seq_no INTEGER, primary_term INTEGER);
"""

#: What the log says.
_EXPECTED = """
-- Origins that have left the log, of events that came back.
INSERT OR IGNORE INTO events
    SELECT partition, offset, image_id, version, kind, tags, metadata, 0 FROM returns;
CREATE INDEX events_image ON events (image_id, version);
UPDATE events SET busy = 1 WHERE busy = 0 AND (partition, offset) IN (
    SELECT partition, offset FROM returns WHERE busy > 0 UNION SELECT partition, offset FROM waiting
);
UPDATE events SET busy = 1 WHERE busy = 0 AND (image_id, version) IN (SELECT image_id, version FROM carried);
CREATE TABLE unsettled (image_id TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO unsettled SELECT DISTINCT image_id FROM events WHERE busy > 0 AND image_id IS NOT NULL;

-- A letter that was replayed explains nothing any more; one that was dropped does.
CREATE INDEX closed_id ON closed (id);
CREATE TABLE buried (partition INTEGER, offset INTEGER, PRIMARY KEY (partition, offset)) WITHOUT ROWID;
CREATE VIEW standing AS SELECT * FROM letters l WHERE NOT EXISTS (
    SELECT 1 FROM closed c
    WHERE c.id = l.id AND c.action <> 'dropped' AND c.partition = l.partition AND c.offset >= l.offset
);
INSERT OR IGNORE INTO buried
    SELECT origin_partition, origin_offset FROM standing, parameters WHERE origin_topic = topic;
INSERT OR IGNORE INTO buried
    SELECT e.partition, e.offset FROM standing l JOIN events e ON e.image_id = l.image_id AND e.version = l.version;

CREATE TABLE expected (
    image_id TEXT PRIMARY KEY, content INTEGER, tags INTEGER, metadata INTEGER, deleted INTEGER
) WITHOUT ROWID;
INSERT INTO expected SELECT
    image_id,
    max((kind = 1) * version),
    max((kind = 1 OR (kind = 2 AND tags)) * version),
    max((kind = 1 OR (kind = 2 AND metadata)) * version),
    max((kind = 3) * version)
FROM events e
WHERE busy = 0 AND kind > 0
    AND NOT EXISTS (SELECT 1 FROM buried b WHERE b.partition = e.partition AND b.offset = e.offset)
GROUP BY image_id;
"""

#: What the image index holds, and how the two differ.
_IMAGES = """
CREATE TABLE state (
    image_id TEXT PRIMARY KEY, content INTEGER, tags INTEGER, metadata INTEGER, deleted INTEGER, objects INTEGER,
    visible INTEGER
) WITHOUT ROWID;
INSERT OR IGNORE INTO state
    SELECT image_id, content, tags, metadata, deleted, objects, visible FROM images
    WHERE id = image_id ORDER BY id, place;

-- Registers that no event set: of before the log, or of nobody.
CREATE TABLE unaccounted (image_id TEXT PRIMARY KEY, version INTEGER) WITHOUT ROWID;
INSERT INTO unaccounted SELECT image_id, max(version) FROM (
    SELECT s.image_id, s.content AS version FROM state s LEFT JOIN expected x USING (image_id)
        WHERE s.content > coalesce(x.content, 0)
    UNION ALL
    SELECT s.image_id, s.tags FROM state s LEFT JOIN expected x USING (image_id) WHERE s.tags > coalesce(x.tags, 0)
    UNION ALL
    SELECT s.image_id, s.metadata FROM state s LEFT JOIN expected x USING (image_id)
        WHERE s.metadata > coalesce(x.metadata, 0)
    UNION ALL
    SELECT s.image_id, s.deleted FROM state s LEFT JOIN expected x USING (image_id)
        WHERE s.deleted > coalesce(x.deleted, 0)
    UNION ALL
    SELECT image_id, 0 FROM state WHERE max(content, tags, metadata, deleted) = 0
) r
WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.image_id = r.image_id AND e.version = r.version)
GROUP BY image_id;
CREATE VIEW beyond_log AS SELECT image_id FROM unaccounted, parameters WHERE version < known_from;
CREATE TABLE strangers (image_id TEXT PRIMARY KEY, version INTEGER) WITHOUT ROWID;
INSERT INTO strangers SELECT image_id, version FROM unaccounted, parameters WHERE version >= known_from;

INSERT INTO findings SELECT 'orphans', image_id, image_id, 'version ' || version || ' is of no event' FROM strangers;
INSERT INTO surplus_images
    SELECT i.id, i.place, i.seq_no, i.primary_term FROM images i JOIN strangers n ON n.image_id = i.id;

CREATE TABLE odd_images AS SELECT
    i.id, i.place, i.seq_no, i.primary_term, i.image_id,
    i.id = i.image_id OR EXISTS (SELECT 1 FROM state s WHERE s.image_id = i.image_id) AS doubled
FROM images i
WHERE i.id IS NOT i.image_id OR i.place > (SELECT min(o.place) FROM images o WHERE o.id = i.id);
INSERT INTO findings SELECT
    CASE WHEN doubled THEN 'duplicates' ELSE 'orphans' END, id, image_id,
    CASE WHEN doubled THEN 'another document of the same image' ELSE 'its id is not that of its image' END
FROM odd_images;
INSERT INTO surplus_images SELECT id, place, seq_no, primary_term FROM odd_images;

INSERT INTO findings SELECT 'missing', image_id, image_id, 'no image document' FROM expected x
    WHERE NOT EXISTS (SELECT 1 FROM state s WHERE s.image_id = x.image_id);
INSERT INTO findings SELECT 'missing', NULL, image_id, 'no dead letter of an event that cannot be read' FROM events e
    WHERE busy = 0 AND kind = 0
    AND NOT EXISTS (SELECT 1 FROM buried b WHERE b.partition = e.partition AND b.offset = e.offset);
-- What a deletion hides need not be recorded, nor a deletion that was over when it came.
INSERT INTO findings SELECT 'stale', image_id, image_id, CASE
        WHEN max(s.content, s.deleted) < x.content THEN 'content of ' || s.content || ', not of ' || x.content
        WHEN max(s.tags, s.deleted) < x.tags THEN 'tags of ' || s.tags || ', not of ' || x.tags
        WHEN max(s.metadata, s.deleted) < x.metadata THEN 'metadata of ' || s.metadata || ', not of ' || x.metadata
        WHEN s.visible THEN 'can be found although it was deleted by ' || max(s.deleted, x.deleted)
        ELSE 'cannot be found although it was not deleted'
    END
FROM state s JOIN expected x USING (image_id)
WHERE max(s.content, s.deleted) < x.content OR max(s.tags, s.deleted) < x.tags
    OR max(s.metadata, s.deleted) < x.metadata OR max(s.content, s.deleted) < x.deleted
    OR (s.visible AND s.content <= max(s.deleted, x.deleted)) OR (NOT s.visible AND s.content > s.deleted);
"""

#: What the object index holds beside the image index. Images that are being worked on are not judged.
_OBJECTS = """
CREATE TABLE held (
    image_id TEXT, ordinal INTEGER, id TEXT, place INTEGER, content INTEGER, revision INTEGER, seq_no INTEGER,
    primary_term INTEGER, PRIMARY KEY (image_id, ordinal)
) WITHOUT ROWID;
INSERT OR IGNORE INTO held
    SELECT image_id, ordinal, id, place, content, revision, seq_no, primary_term FROM objects
    WHERE id = image_id || '#' || ordinal ORDER BY id, place;

CREATE TABLE odd_objects AS SELECT
    o.id, o.place, o.seq_no, o.primary_term, o.image_id,
    EXISTS (SELECT 1 FROM held h WHERE h.image_id = o.image_id AND h.ordinal = o.ordinal) AS doubled
FROM objects o
WHERE o.id IS NOT (o.image_id || '#' || o.ordinal) OR o.place > (SELECT min(c.place) FROM objects c WHERE c.id = o.id);
INSERT INTO findings SELECT
    CASE WHEN doubled THEN 'duplicates' ELSE 'orphans' END, id, image_id,
    CASE WHEN doubled THEN 'another document of the same object' ELSE 'its id is not that of its object' END
FROM odd_objects;
INSERT INTO surplus_objects SELECT id, place, seq_no, primary_term FROM odd_objects;

CREATE TABLE orphaned AS SELECT h.*, CASE
        WHEN s.image_id IS NULL THEN 'of an image without a document'
        WHEN n.image_id IS NOT NULL THEN 'of an image that no event accounts for'
        WHEN NOT s.visible THEN 'of a deleted image'
        ELSE 'the image has ' || s.objects || ' objects'
    END AS why
FROM held h
LEFT JOIN state s USING (image_id) LEFT JOIN expected x USING (image_id) LEFT JOIN strangers n USING (image_id)
WHERE NOT EXISTS (SELECT 1 FROM unsettled u WHERE u.image_id = h.image_id) AND (
    -- Without its document, but expected: the image is missing, its objects are not too many.
    (s.image_id IS NULL AND coalesce(x.content <= x.deleted, 1))
    OR n.image_id IS NOT NULL OR NOT s.visible OR h.ordinal >= s.objects
);
INSERT INTO findings SELECT 'orphans', id, image_id, why FROM orphaned;
INSERT INTO surplus_objects SELECT id, place, seq_no, primary_term FROM orphaned;

CREATE VIEW whole AS SELECT * FROM state s WHERE visible
    AND NOT EXISTS (SELECT 1 FROM unsettled u WHERE u.image_id = s.image_id)
    AND NOT EXISTS (SELECT 1 FROM strangers n WHERE n.image_id = s.image_id);
INSERT INTO findings SELECT 'stale', h.id, h.image_id, 'of another state than its image'
FROM held h JOIN whole s USING (image_id)
WHERE h.ordinal < s.objects AND (
    h.content <> s.content OR h.revision <> s.content + s.tags + s.metadata + s.deleted
);
WITH RECURSIVE
short AS (SELECT image_id, objects FROM whole s WHERE objects > (
    SELECT count(*) FROM held h WHERE h.image_id = s.image_id AND h.ordinal < s.objects
)),
wanted (image_id, ordinal, objects) AS (
    SELECT image_id, 0, objects FROM short
    UNION ALL SELECT image_id, ordinal + 1, objects FROM wanted WHERE ordinal + 1 < objects
)
INSERT INTO findings SELECT 'missing', image_id || '#' || ordinal, image_id, 'no object document' FROM wanted w
    WHERE NOT EXISTS (SELECT 1 FROM held h WHERE h.image_id = w.image_id AND h.ordinal = w.ordinal);
"""

#: What became of each event. One that is in force is as good as its image and all objects of it.
_OUTCOMES = """
CREATE TABLE faulty (image_id TEXT PRIMARY KEY, kind TEXT) WITHOUT ROWID;
INSERT OR IGNORE INTO faulty
    SELECT image_id, kind FROM findings
    WHERE kind IN ('missing', 'stale') AND document IS NOT NULL ORDER BY kind;
INSERT OR IGNORE INTO faulty SELECT image_id, 'stale' FROM strangers;
CREATE VIEW judged AS SELECT e.partition, e.offset, e.image_id, CASE
        WHEN e.busy = 1 THEN 'in_flight'
        WHEN b.partition IS NOT NULL AND NOT coalesce(e.version IN (s.content, s.tags, s.metadata, s.deleted), 0)
            THEN 'dead'
        WHEN e.kind = 0 THEN 'missing'
        WHEN e.kind = 3 AND e.version >= coalesce(x.deleted, 0) THEN coalesce(f.kind, 'deleted')
        WHEN e.kind = 3 THEN 'superseded'
        WHEN e.version < x.deleted THEN 'deleted'
        WHEN e.kind = 1 AND e.version < x.content THEN 'superseded'
        WHEN e.kind = 2 AND e.version < max(e.tags * x.tags, e.metadata * x.metadata)
            AND NOT ((e.tags AND e.version >= x.tags) OR (e.metadata AND e.version >= x.metadata)) THEN 'superseded'
        ELSE coalesce(f.kind, 'indexed')
    END AS outcome
FROM events e
LEFT JOIN buried b ON b.partition = e.partition AND b.offset = e.offset
LEFT JOIN expected x ON x.image_id = e.image_id
LEFT JOIN state s ON s.image_id = e.image_id
LEFT JOIN faulty f ON f.image_id = e.image_id
WHERE e.busy < 2;
"""

JUDGE = _EXPECTED + _IMAGES + _OBJECTS + _OUTCOMES
