DROP TRIGGER task_boost ON orchestrator.task;
DROP FUNCTION orchestrator.task_boost();
DELETE FROM orchestrator.task WHERE kind IN ('verify', 'texts', 'measure');
DROP INDEX orchestrator.task_claim, orchestrator.task_turn;
ALTER TABLE orchestrator.task
    DROP COLUMN rank,
    DROP COLUMN boost,
    DROP COLUMN avoid,
    DROP COLUMN checks,
    DROP COLUMN checked_fence,
    DROP CONSTRAINT task_kind_check,
    ADD CONSTRAINT task_kind_check CHECK (kind IN ('probe', 'chunk', 'move', 'images'));
CREATE INDEX task_claim ON orchestrator.task (priority DESC, created, position)
    WHERE state = 'available';
CREATE INDEX task_turn ON orchestrator.task (owner, priority DESC, created, position)
    WHERE state = 'available';

UPDATE orchestrator.job SET state = 'failed' WHERE state = 'cancelled';
DROP INDEX orchestrator.job_failed;
ALTER TABLE orchestrator.job
    DROP COLUMN priority,
    DROP COLUMN paused,
    DROP CONSTRAINT job_state_check,
    ADD CONSTRAINT job_state_check CHECK (state IN ('queued', 'running', 'done', 'failed'));
CREATE INDEX job_failed ON orchestrator.job (finished) WHERE state = 'failed';

ALTER TABLE orchestrator.worker
    DROP COLUMN cordoned,
    DROP COLUMN quarantine_reason,
    DROP COLUMN last_error,
    DROP COLUMN codecs,
    DROP COLUMN threads,
    DROP COLUMN instance,
    DROP COLUMN sampled;
