-- Uploads, items, the queue of work and its results. Times are the database's clock: it alone
-- judges leases. Ids are UUIDv7, so their order is the order of creation.
CREATE SCHEMA orchestrator;

-- opening -> open -> committing -> committed; committing -> open when bytes are missing;
-- opening | open -> aborted. What stops half way in opening or committing is finished by the sweeper.
CREATE TABLE orchestrator.upload (
    id              uuid PRIMARY KEY,
    item            uuid NOT NULL UNIQUE,
    owner           uuid NOT NULL,
    owner_name      text NOT NULL,
    idempotency_key text NOT NULL DEFAULT '',
    filename        text NOT NULL,
    digest          bytea NOT NULL CHECK (octet_length(digest) = 32),
    size            bigint NOT NULL CHECK (size > 0),
    kind            text NOT NULL CHECK (kind IN ('video', 'audio')),
    route           text NOT NULL,
    state           text NOT NULL DEFAULT 'opening'
                    CHECK (state IN ('opening', 'open', 'committing', 'committed', 'aborted')),
    title           text NOT NULL DEFAULT '',
    description     text NOT NULL DEFAULT '',
    price_minor     bigint NOT NULL DEFAULT 0 CHECK (price_minor >= 0),
    price_currency  text NOT NULL DEFAULT '',
    publish         boolean NOT NULL DEFAULT false,
    created         timestamptz NOT NULL DEFAULT now(),
    updated         timestamptz NOT NULL DEFAULT now()
);
-- One upload of the same bytes by the same user at a time: opening it again continues it.
CREATE UNIQUE INDEX upload_open ON orchestrator.upload (owner, digest)
    WHERE state IN ('opening', 'open', 'committing');
CREATE UNIQUE INDEX upload_key ON orchestrator.upload (owner, idempotency_key)
    WHERE idempotency_key <> '' AND state <> 'aborted';
CREATE INDEX upload_owner ON orchestrator.upload (owner, id);
CREATE INDEX upload_sweep ON orchestrator.upload (updated)
    WHERE state IN ('opening', 'open', 'committing');

CREATE TABLE orchestrator.item (
    id            uuid PRIMARY KEY,
    upload        uuid NOT NULL UNIQUE REFERENCES orchestrator.upload,
    owner         uuid NOT NULL,
    title         text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('video', 'audio')),
    route         text NOT NULL, -- node id of the origin that holds the source and the segments
    digest        bytea NOT NULL CHECK (octet_length(digest) = 32),
    size          bigint NOT NULL CHECK (size > 0),
    state         text NOT NULL DEFAULT 'processing'
                  CHECK (state IN ('processing', 'playable', 'ready', 'failed')),
    reason        text NOT NULL DEFAULT '',
    plan          bytea,
    duration_us   bigint NOT NULL DEFAULT 0,
    width         integer NOT NULL DEFAULT 0,
    height        integer NOT NULL DEFAULT 0,
    purged        boolean NOT NULL DEFAULT false, -- source and segments were given up
    media_version bigint NOT NULL DEFAULT 0,      -- grows with every change the store must know
    media_sent    bigint NOT NULL DEFAULT 0,      -- the last one it was told
    telling_until timestamptz NOT NULL DEFAULT '-infinity', -- somebody is telling it just now
    created       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX item_digest ON orchestrator.item (digest) WHERE NOT purged;
CREATE INDEX item_untold ON orchestrator.item (id) WHERE media_sent < media_version;

CREATE TABLE orchestrator.job (
    id         uuid PRIMARY KEY,
    item       uuid NOT NULL UNIQUE REFERENCES orchestrator.item,
    owner      uuid NOT NULL,
    state      text NOT NULL DEFAULT 'queued'
               CHECK (state IN ('queued', 'running', 'done', 'failed')),
    reason     text NOT NULL DEFAULT '',
    created    timestamptz NOT NULL DEFAULT now(),
    playable   timestamptz,
    finished   timestamptz,
    told       timestamptz NOT NULL DEFAULT '-infinity' -- last progress event, which are rationed
);
CREATE INDEX job_owner ON orchestrator.job (owner, id);
CREATE INDEX job_failed ON orchestrator.job (finished) WHERE state = 'failed';

-- blocked -> available -> leased -> done
--                ^          | \--> dead (rejected, or out of attempts)
--                |          v
--                +----- retry_wait          any but done, dead -> cancelled (with its job)
-- Lock order everywhere: job, then task, then event topic. The queue's own moves lock tasks alone.
CREATE TABLE orchestrator.task (
    id             uuid PRIMARY KEY,
    job            uuid NOT NULL REFERENCES orchestrator.job,
    item           uuid NOT NULL REFERENCES orchestrator.item,
    kind           text NOT NULL CHECK (kind IN ('probe', 'chunk', 'move')),
    position       integer NOT NULL DEFAULT 0, -- order within the job
    state          text NOT NULL DEFAULT 'available'
                   CHECK (state IN ('blocked', 'available', 'leased', 'retry_wait', 'done', 'dead',
                                    'cancelled')),
    priority       integer NOT NULL DEFAULT 100,
    not_before     timestamptz NOT NULL DEFAULT now(),
    attempts       integer NOT NULL DEFAULT 0,
    crashes        integer NOT NULL DEFAULT 0,
    fence          bigint NOT NULL DEFAULT 0, -- only grows: one more with every lease
    worker         text NOT NULL DEFAULT '',
    lease_until    timestamptz,
    stage          text NOT NULL DEFAULT '',
    progress       double precision NOT NULL DEFAULT 0,
    target         text NOT NULL DEFAULT '',  -- move: node id of the origin to copy to
    renditions     text NOT NULL DEFAULT '',  -- chunk: "v720,v480"
    first_segment  integer NOT NULL DEFAULT 0,
    n_segments     integer NOT NULL DEFAULT 0,
    seconds_fetch  double precision NOT NULL DEFAULT 0,
    seconds_encode double precision NOT NULL DEFAULT 0,
    seconds_store  double precision NOT NULL DEFAULT 0,
    seconds_cpu    double precision NOT NULL DEFAULT 0,
    error          text NOT NULL DEFAULT '',
    created        timestamptz NOT NULL DEFAULT now(),
    finished       timestamptz
);
CREATE INDEX task_claim ON orchestrator.task (priority DESC, created, position)
    WHERE state = 'available';
CREATE INDEX task_waiting ON orchestrator.task (not_before) WHERE state = 'retry_wait';
CREATE INDEX task_leased ON orchestrator.task (lease_until) WHERE state = 'leased';
CREATE INDEX task_job ON orchestrator.task (job, position);
CREATE INDEX task_item ON orchestrator.task (item, first_segment) WHERE kind = 'chunk';

-- Published segments. The first publication wins. Rows of one item are inserted under its job's row
-- lock, so within an item a larger id was committed later: readers follow with id > last.
CREATE TABLE orchestrator.output (
    id          bigint GENERATED ALWAYS AS IDENTITY,
    item        uuid NOT NULL REFERENCES orchestrator.item,
    rendition   text NOT NULL,
    segment     integer NOT NULL CHECK (segment >= 0),
    digest      bytea NOT NULL CHECK (octet_length(digest) = 32),
    size        bigint NOT NULL CHECK (size > 0),
    first_pts   bigint NOT NULL,
    duration    bigint NOT NULL,
    samples     integer NOT NULL,
    init_digest bytea NOT NULL,
    repeated    integer NOT NULL DEFAULT 0,
    dropped     integer NOT NULL DEFAULT 0,
    task        uuid NOT NULL,
    worker      text NOT NULL,
    attempts    integer NOT NULL,
    seconds     double precision NOT NULL DEFAULT 0,
    created     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (item, rendition, segment)
);
CREATE UNIQUE INDEX output_follow ON orchestrator.output (item, id);

CREATE TABLE orchestrator.worker (
    id                text PRIMARY KEY, -- node id
    slots             integer NOT NULL DEFAULT 0,
    build             text NOT NULL DEFAULT '',
    cpu_class         text NOT NULL DEFAULT '',
    last_seen         timestamptz NOT NULL DEFAULT now(),
    done              bigint NOT NULL DEFAULT 0,
    failed            bigint NOT NULL DEFAULT 0,
    failed_in_row     integer NOT NULL DEFAULT 0,
    quarantined_until timestamptz NOT NULL DEFAULT '-infinity'
);

-- What origins must still be told, repeated until they have heard it.
CREATE TABLE orchestrator.chore (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('unpin', 'drop')),
    origin     text NOT NULL,
    item       uuid NOT NULL,
    upload     uuid,
    digest     bytea, -- unpin: this object only; null: all of the item's
    not_before timestamptz NOT NULL DEFAULT now(),
    attempts   integer NOT NULL DEFAULT 0
);
CREATE INDEX chore_due ON orchestrator.chore (not_before);

CREATE TABLE orchestrator.event (
    topic   text NOT NULL,
    seq     bigint NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    kind    text NOT NULL,
    subject text NOT NULL,
    owner   uuid,
    data    jsonb NOT NULL,
    PRIMARY KEY (topic, seq)
);
CREATE TABLE orchestrator.event_topic (
    topic text PRIMARY KEY,
    seq   bigint NOT NULL DEFAULT 0
);
