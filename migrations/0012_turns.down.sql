DROP INDEX orchestrator.task_turn;
CREATE INDEX task_turn ON orchestrator.task (owner, priority DESC, created, position)
    WHERE state = 'available';
