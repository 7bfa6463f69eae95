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
