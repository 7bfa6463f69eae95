-- Events: positions of consumers by name, what was pruned, and the epoch of a user's rights.

CREATE TABLE session.consumer (
    topic    text NOT NULL,
    owner    text NOT NULL, -- user id, or the role of the nodes that share it
    name     text NOT NULL,
    position bigint NOT NULL CHECK (position >= 0), -- the last event handled
    updated  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, owner, name)
);
-- The oldest event that is still there; seq + 1 when there is none.
ALTER TABLE session.event_topic ADD COLUMN oldest bigint NOT NULL DEFAULT 1;

CREATE TABLE orchestrator.consumer (
    topic    text NOT NULL,
    owner    text NOT NULL, -- user id, or the role of the nodes that share it
    name     text NOT NULL,
    position bigint NOT NULL CHECK (position >= 0), -- the last event handled
    updated  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, owner, name)
);
-- The oldest event that is still there; seq + 1 when there is none.
ALTER TABLE orchestrator.event_topic ADD COLUMN oldest bigint NOT NULL DEFAULT 1;

CREATE TABLE store.consumer (
    topic    text NOT NULL,
    owner    text NOT NULL, -- user id, or the role of the nodes that share it
    name     text NOT NULL,
    position bigint NOT NULL CHECK (position >= 0), -- the last event handled
    updated  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, owner, name)
);
-- The oldest event that is still there; seq + 1 when there is none.
ALTER TABLE store.event_topic ADD COLUMN oldest bigint NOT NULL DEFAULT 1;

-- Access tokens carry it; it goes up whenever those given before must not count any more: roles
-- changed, account disabled, password changed, all logins ended.
ALTER TABLE session.account ADD COLUMN epoch bigint NOT NULL DEFAULT 0;
