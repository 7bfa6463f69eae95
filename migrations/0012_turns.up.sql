-- Each owner's best task by its rank, which a job's priority shapes.
DROP INDEX orchestrator.task_turn;
CREATE INDEX task_turn ON orchestrator.task (owner, rank DESC, created, position)
    WHERE state = 'available';
