ALTER TABLE orchestrator.task DROP COLUMN unmeasured;
DELETE FROM orchestrator.task WHERE kind = 'measure';
ALTER TABLE orchestrator.item
    DROP COLUMN loudness_mlufs, DROP COLUMN loudness_range_mlu, DROP COLUMN true_peak_mdb;
