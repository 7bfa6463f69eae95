-- What an uploader chose for the renditions of an item: the probe is told.
ALTER TABLE orchestrator.upload
    ADD COLUMN preset text NOT NULL DEFAULT '' CHECK (preset IN ('', 'fast', 'quality')),
    ADD COLUMN video_codecs text NOT NULL DEFAULT ''; -- "hevc,av1": made on request, besides H.264
