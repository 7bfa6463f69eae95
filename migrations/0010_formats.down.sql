ALTER TABLE orchestrator.upload DROP COLUMN preset, DROP COLUMN video_codecs;
