DELETE FROM orchestrator.output WHERE rendition IN ('poster', 'tiles');
DELETE FROM orchestrator.task WHERE kind = 'images';
ALTER TABLE orchestrator.task DROP CONSTRAINT task_kind_check;
ALTER TABLE orchestrator.task ADD CONSTRAINT task_kind_check
    CHECK (kind IN ('probe', 'chunk', 'move'));
