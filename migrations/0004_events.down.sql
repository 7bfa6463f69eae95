ALTER TABLE session.account DROP COLUMN epoch;
ALTER TABLE store.event_topic DROP COLUMN oldest;
DROP TABLE store.consumer;
ALTER TABLE orchestrator.event_topic DROP COLUMN oldest;
DROP TABLE orchestrator.consumer;
ALTER TABLE session.event_topic DROP COLUMN oldest;
DROP TABLE session.consumer;
