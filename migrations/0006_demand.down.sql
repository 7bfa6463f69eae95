DROP TABLE orchestrator.turn;
DELETE FROM orchestrator.task WHERE demand;
DROP INDEX orchestrator.task_demand, orchestrator.task_wanted, orchestrator.task_urgent,
    orchestrator.task_turn;
DROP TRIGGER task_owner ON orchestrator.task;
DROP FUNCTION orchestrator.task_owner();
ALTER TABLE orchestrator.task
    DROP COLUMN owner, DROP COLUMN demand, DROP COLUMN wanted, DROP COLUMN wanted_until,
    DROP COLUMN yielding;
