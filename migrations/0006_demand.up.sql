-- What somebody waits for. A demand task makes a few segments of one rendition from the wanted one
-- on, beside the tasks of its job: it is no part of the job's progress and cannot fail it, and goes
-- when nobody wants it any more. Tasks may overlap: the first publication of a segment wins.
ALTER TABLE orchestrator.task
    ADD COLUMN owner uuid,                            -- its job's
    ADD COLUMN demand boolean NOT NULL DEFAULT false,
    ADD COLUMN wanted integer,                        -- the segment that is waited for, until published
    ADD COLUMN wanted_until timestamptz,              -- when the wish ends unless it is repeated
    ADD COLUMN yielding boolean NOT NULL DEFAULT false; -- to be given back after the running segment
UPDATE orchestrator.task t SET owner = j.owner FROM orchestrator.job j WHERE j.id = t.job;

CREATE FUNCTION orchestrator.task_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.owner := (SELECT j.owner FROM orchestrator.job j WHERE j.id = NEW.job);
    RETURN NEW;
END $$;
CREATE TRIGGER task_owner BEFORE INSERT ON orchestrator.task
    FOR EACH ROW EXECUTE FUNCTION orchestrator.task_owner();

CREATE INDEX task_demand ON orchestrator.task (item, first_segment) WHERE demand;
CREATE INDEX task_wanted ON orchestrator.task (wanted_until) WHERE wanted_until IS NOT NULL;
CREATE INDEX task_urgent ON orchestrator.task (priority DESC, created)
    WHERE state = 'available' AND priority >= 900;
-- The best task of each owner, for taking turns.
CREATE INDEX task_turn ON orchestrator.task (owner, priority DESC, created, position)
    WHERE state = 'available';

-- Whose turn it is: the owner who was served longest ago comes first.
CREATE TABLE orchestrator.turn (
    owner  uuid PRIMARY KEY,
    served timestamptz NOT NULL DEFAULT now()
);
