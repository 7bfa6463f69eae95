-- Text that is added to an item after its upload. A number is given once: what replaces a text is
-- another one, so that whatever is named "x1" never changes.
CREATE TABLE orchestrator.subtitle (
    item             uuid NOT NULL REFERENCES orchestrator.item,
    number           integer NOT NULL CHECK (number BETWEEN 1 AND 99),
    language         text NOT NULL DEFAULT '',
    title            text NOT NULL DEFAULT '',
    is_default       boolean NOT NULL DEFAULT false,
    is_forced        boolean NOT NULL DEFAULT false,
    hearing_impaired boolean NOT NULL DEFAULT false,
    digest           bytea NOT NULL CHECK (octet_length(digest) = 32), -- the file as it was sent
    size             bigint NOT NULL CHECK (size > 0),
    replaces         integer, -- goes when this one is ready
    task             uuid NOT NULL,
    state            text NOT NULL DEFAULT 'converting'
                     CHECK (state IN ('converting', 'ready', 'failed', 'removed')),
    reason           text NOT NULL DEFAULT '',
    created          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (item, number)
);

-- The store is told what is said in an item: chores that name a text, read when they are done.
ALTER TABLE orchestrator.chore
    ADD COLUMN name text NOT NULL DEFAULT '',
    DROP CONSTRAINT chore_kind_check,
    ADD CONSTRAINT chore_kind_check CHECK (kind IN ('unpin', 'drop', 'words'));

-- What is said when, of each text of an item.
CREATE TABLE store.cue (
    item     uuid NOT NULL REFERENCES store.item ON DELETE CASCADE,
    subtitle text NOT NULL,
    start_ms bigint NOT NULL CHECK (start_ms >= 0),
    words    text NOT NULL,
    search   tsvector GENERATED ALWAYS AS (to_tsvector('simple', words)) STORED
);
CREATE INDEX cue_item ON store.cue (item, subtitle);
CREATE INDEX cue_search ON store.cue USING gin (search);
