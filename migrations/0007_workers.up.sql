-- Workers that people steer, jobs that are cancelled, paused and put first, results that are checked.
ALTER TABLE orchestrator.worker
    ADD COLUMN cordoned boolean NOT NULL DEFAULT false,       -- gets no more leases
    ADD COLUMN quarantine_reason text NOT NULL DEFAULT '',
    ADD COLUMN last_error text NOT NULL DEFAULT '',
    ADD COLUMN codecs text NOT NULL DEFAULT '',               -- what it encodes: "h264,hevc,aac"
    ADD COLUMN threads integer NOT NULL DEFAULT 0,
    ADD COLUMN instance text NOT NULL DEFAULT '',             -- another one with each start
    ADD COLUMN sampled bigint NOT NULL DEFAULT 0;             -- results that a check was ordered for

ALTER TABLE orchestrator.job
    ADD COLUMN priority integer NOT NULL DEFAULT 0 CHECK (priority BETWEEN -1000 AND 1000),
    ADD COLUMN paused boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT job_state_check,
    ADD CONSTRAINT job_state_check
        CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled'));
DROP INDEX orchestrator.job_failed;
CREATE INDEX job_failed ON orchestrator.job (finished) WHERE state IN ('failed', 'cancelled');

-- rank is what the queue goes by: a job's priority moves its tasks among the background work of all
-- jobs, and never before what somebody waits for (900 and more).
ALTER TABLE orchestrator.task
    ADD COLUMN boost integer NOT NULL DEFAULT 0,
    ADD COLUMN rank integer NOT NULL GENERATED ALWAYS AS
        (CASE WHEN priority >= 900 THEN priority ELSE least(priority + boost, 899) END) STORED,
    ADD COLUMN avoid text NOT NULL DEFAULT '',  -- a worker that others should do it instead of
    ADD COLUMN checks uuid,                     -- verify: the task whose results are looked at
    ADD COLUMN checked_fence bigint NOT NULL DEFAULT 0, -- and the lease that they were made under
    DROP CONSTRAINT task_kind_check,
    ADD CONSTRAINT task_kind_check CHECK (kind IN
        ('probe', 'chunk', 'move', 'images', 'texts', 'measure', 'verify'));
DROP INDEX orchestrator.task_claim, orchestrator.task_turn;
CREATE INDEX task_claim ON orchestrator.task (rank DESC, created, position)
    WHERE state = 'available';
CREATE INDEX task_turn ON orchestrator.task (owner, rank DESC, created, position)
    WHERE state = 'available';

-- Whoever makes a task, it starts with its job's priority.
CREATE FUNCTION orchestrator.task_boost() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.boost := (SELECT j.priority FROM orchestrator.job j WHERE j.id = NEW.job);
    RETURN NEW;
END $$;
CREATE TRIGGER task_boost BEFORE INSERT ON orchestrator.task
    FOR EACH ROW EXECUTE FUNCTION orchestrator.task_boost();
