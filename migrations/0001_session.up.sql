-- Accounts, logins and their refresh tokens. Owned by the session service alone.
CREATE SCHEMA session;

CREATE TABLE session.account (
    id       uuid PRIMARY KEY,
    name     text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9._-]{2,64}$'),
    email    text NOT NULL DEFAULT '',
    password text NOT NULL, -- Argon2id, libsodium's string form
    roles    text[] NOT NULL CHECK (roles <@ ARRAY['user', 'creator', 'admin']),
    disabled boolean NOT NULL DEFAULT false,
    created  timestamptz NOT NULL DEFAULT now()
);

-- One sign-in on one device: the family of its refresh tokens, and the `sid` of access tokens.
CREATE TABLE session.login (
    id      uuid PRIMARY KEY,
    account uuid NOT NULL REFERENCES session.account,
    device  text NOT NULL,
    created timestamptz NOT NULL DEFAULT now(),
    expires timestamptz NOT NULL, -- 90 days after created, however often it is refreshed
    ended   timestamptz,
    reason  text NOT NULL DEFAULT '' -- logout, reuse, password, disabled
);
CREATE INDEX login_account ON session.login (account) WHERE ended IS NULL;
CREATE INDEX login_expires ON session.login (expires);

-- Spent tokens stay until they would have expired, so that their reuse is noticed.
CREATE TABLE session.refresh (
    hash    bytea PRIMARY KEY, -- BLAKE2b-256 of the token
    login   uuid NOT NULL REFERENCES session.login ON DELETE CASCADE,
    issued  timestamptz NOT NULL DEFAULT now(),
    expires timestamptz NOT NULL,
    spent   timestamptz,
    salt    bytea -- successor = BLAKE2b-256(key: token, salt): repeatable by the token's holder only
);
CREATE INDEX refresh_login ON session.refresh (login);
CREATE INDEX refresh_expires ON session.refresh (expires);

-- Failed logins by name, whether an account of that name exists or not.
CREATE TABLE session.throttle (
    name     text PRIMARY KEY,
    failures integer NOT NULL,
    last     timestamptz NOT NULL,
    retry_at timestamptz NOT NULL
);
CREATE INDEX throttle_last ON session.throttle (last);

CREATE TABLE session.event (
    topic   text NOT NULL,
    seq     bigint NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    kind    text NOT NULL,
    subject text NOT NULL,
    owner   uuid,
    data    jsonb NOT NULL,
    PRIMARY KEY (topic, seq)
);
CREATE INDEX event_owner ON session.event (owner, topic, seq);
CREATE INDEX event_subject ON session.event (subject, topic, seq);
CREATE TABLE session.event_topic (
    topic text PRIMARY KEY,
    seq   bigint NOT NULL DEFAULT 0
);
