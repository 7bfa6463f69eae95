DROP TABLE store.cue;
DELETE FROM orchestrator.chore WHERE kind = 'words';
ALTER TABLE orchestrator.chore
    DROP COLUMN name,
    DROP CONSTRAINT chore_kind_check,
    ADD CONSTRAINT chore_kind_check CHECK (kind IN ('unpin', 'drop'));
DELETE FROM orchestrator.task WHERE kind = 'texts' AND demand;
DELETE FROM orchestrator.output WHERE rendition ~ '^x[0-9]+$';
DROP TABLE orchestrator.subtitle;
