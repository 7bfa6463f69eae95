-- Catalogue, quotes, orders, ledger, entitlements. Owned by the store service alone.
CREATE SCHEMA store;

CREATE TABLE store.item (
    id          uuid PRIMARY KEY,
    owner       uuid NOT NULL,
    owner_name  text NOT NULL,
    title       text NOT NULL,
    description text NOT NULL DEFAULT '',
    kind        text NOT NULL CHECK (kind IN ('video', 'audio')),
    state       text NOT NULL DEFAULT 'processing'
                CHECK (state IN ('processing', 'playable', 'ready', 'failed')),
    reason      text NOT NULL DEFAULT '',
    published   boolean NOT NULL DEFAULT false,
    price_minor bigint NOT NULL DEFAULT 0 CHECK (price_minor >= 0), -- 0: free
    currency    text NOT NULL DEFAULT '' CHECK (currency ~ '^([A-Z]{3})?$'),
    duration_us bigint NOT NULL DEFAULT 0,
    width       integer NOT NULL DEFAULT 0,
    height      integer NOT NULL DEFAULT 0,
    created     timestamptz NOT NULL DEFAULT now(),
    version     bigint NOT NULL DEFAULT 1,
    search      tsvector GENERATED ALWAYS AS (
                    setweight(to_tsvector('simple', title), 'A') ||
                    setweight(to_tsvector('simple', description), 'B')) STORED,
    CHECK (price_minor = 0 OR currency <> '')
);
CREATE INDEX item_published ON store.item (id DESC) WHERE published;
CREATE INDEX item_owner ON store.item (owner, id DESC);
CREATE INDEX item_search ON store.item USING gin (search);

CREATE TABLE store.quote (
    id       uuid PRIMARY KEY,
    buyer    uuid NOT NULL,
    currency text NOT NULL,
    total    bigint NOT NULL CHECK (total >= 0),
    expires  timestamptz NOT NULL
);
CREATE INDEX quote_expires ON store.quote (expires);
CREATE TABLE store.quote_line (
    quote       uuid NOT NULL REFERENCES store.quote ON DELETE CASCADE,
    position    integer NOT NULL,
    item        uuid NOT NULL REFERENCES store.item,
    title       text NOT NULL,
    price_minor bigint NOT NULL CHECK (price_minor >= 0),
    owned       boolean NOT NULL,
    PRIMARY KEY (quote, position)
);

-- ---------------------------------------------------------------- ledger: double entry
-- prepaid   what a user has to spend        earnings  what a seller has been paid
-- external  money that came in from outside: negative, the counterpart of all the others
CREATE TABLE store.account (
    id       uuid PRIMARY KEY,
    kind     text NOT NULL CHECK (kind IN ('prepaid', 'earnings', 'external')),
    owner    uuid NOT NULL, -- external: the nil UUID
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    balance  bigint NOT NULL DEFAULT 0, -- kept by the trigger below; sum of the entries
    UNIQUE (owner, kind, currency),
    CONSTRAINT account_not_negative CHECK (kind = 'external' OR balance >= 0)
);
CREATE TABLE store.txn (
    id       uuid PRIMARY KEY,
    kind     text NOT NULL CHECK (kind IN ('credit', 'voucher', 'purchase', 'refund')),
    reverses uuid UNIQUE REFERENCES store.txn, -- refund: what it gives back
    actor    uuid NOT NULL,
    created  timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'refund') = (reverses IS NOT NULL))
);
CREATE TABLE store.entry (
    txn      uuid NOT NULL REFERENCES store.txn,
    position integer NOT NULL,
    account  uuid NOT NULL REFERENCES store.account,
    amount   bigint NOT NULL CHECK (amount <> 0), -- minor units; positive: the account receives
    currency text NOT NULL,
    PRIMARY KEY (txn, position)
);
CREATE INDEX entry_account ON store.entry (account);

CREATE FUNCTION store.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%.% is append-only', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER entry_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON store.entry
    FOR EACH STATEMENT EXECUTE FUNCTION store.refuse_change();
CREATE TRIGGER txn_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON store.txn
    FOR EACH STATEMENT EXECUTE FUNCTION store.refuse_change();

CREATE FUNCTION store.post_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE store.account SET balance = balance + NEW.amount
        WHERE id = NEW.account AND currency = NEW.currency;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'entry and account differ in currency' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER entry_post AFTER INSERT ON store.entry
    FOR EACH ROW EXECUTE FUNCTION store.post_entry();

CREATE FUNCTION store.check_balanced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM store.entry WHERE txn = NEW.txn
               GROUP BY currency HAVING sum(amount) <> 0) THEN
        RAISE EXCEPTION 'ledger transaction % does not sum to zero', NEW.txn
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER entry_balanced AFTER INSERT ON store.entry
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION store.check_balanced();

-- ---------------------------------------------------------------- orders and what they give
CREATE TABLE store.orders (
    id         uuid PRIMARY KEY,
    buyer      uuid NOT NULL,
    buyer_name text NOT NULL,
    quote      uuid NOT NULL UNIQUE, -- a quote is bought once; no reference: quotes are swept
    state      text NOT NULL CHECK (state IN ('paid', 'refunded')),
    currency   text NOT NULL,
    total      bigint NOT NULL CHECK (total >= 0),
    refunded   bigint NOT NULL DEFAULT 0 CHECK (refunded BETWEEN 0 AND total),
    txn        uuid REFERENCES store.txn, -- NULL: nothing to pay
    created    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orders_buyer ON store.orders (buyer, id DESC);
CREATE TABLE store.order_line (
    order_id    uuid NOT NULL REFERENCES store.orders,
    position    integer NOT NULL,
    item        uuid NOT NULL REFERENCES store.item,
    title       text NOT NULL,
    price_minor bigint NOT NULL CHECK (price_minor >= 0),
    owned       boolean NOT NULL,
    PRIMARY KEY (order_id, position)
);
CREATE TABLE store.entitlement (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    buyer    uuid NOT NULL,
    item     uuid NOT NULL REFERENCES store.item,
    order_id uuid NOT NULL REFERENCES store.orders,
    since    timestamptz NOT NULL DEFAULT now(),
    revoked  timestamptz
);
CREATE UNIQUE INDEX entitlement_once ON store.entitlement (buyer, item) WHERE revoked IS NULL;
CREATE INDEX entitlement_library ON store.entitlement (buyer, id DESC) WHERE revoked IS NULL;
CREATE INDEX entitlement_order ON store.entitlement (order_id);

-- The row commits with the effect it stands for, so a key is either unknown or answered: there is
-- no state in between for anybody to see.
CREATE TABLE store.idempotency (
    account  uuid NOT NULL,
    key      text NOT NULL,
    digest   bytea NOT NULL, -- BLAKE2b-256 of method and request
    response bytea NOT NULL,
    created  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, key)
);
CREATE INDEX idempotency_created ON store.idempotency (created);

CREATE TABLE store.voucher (
    hash     bytea PRIMARY KEY, -- BLAKE2b-256 of the code
    amount   bigint NOT NULL CHECK (amount > 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    expires  timestamptz NOT NULL,
    creator  uuid NOT NULL,
    created  timestamptz NOT NULL DEFAULT now(),
    txn      uuid REFERENCES store.txn -- redeemed by
);

CREATE TABLE store.event (
    topic   text NOT NULL,
    seq     bigint NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    kind    text NOT NULL,
    subject text NOT NULL,
    owner   uuid,
    data    jsonb NOT NULL,
    PRIMARY KEY (topic, seq)
);
CREATE INDEX event_owner ON store.event (owner, topic, seq);
CREATE INDEX event_subject ON store.event (subject, topic, seq);
CREATE TABLE store.event_topic (
    topic text PRIMARY KEY,
    seq   bigint NOT NULL DEFAULT 0
);
