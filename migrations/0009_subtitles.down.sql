DELETE FROM orchestrator.task WHERE kind = 'texts' AND demand;
DELETE FROM orchestrator.output WHERE rendition ~ '^x[0-9]+$';
DROP TABLE orchestrator.subtitle;
