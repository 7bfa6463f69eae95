-- How loud an item is (EBU R 128), measured once: thousandths of LUFS, LU and dBTP.
ALTER TABLE orchestrator.item
    ADD COLUMN loudness_mlufs integer, -- NULL: not measured
    ADD COLUMN loudness_range_mlu integer,
    ADD COLUMN true_peak_mdb integer;

-- A task of a normalised rendition that is blocked until its item is measured.
ALTER TABLE orchestrator.task
    ADD COLUMN unmeasured boolean NOT NULL DEFAULT false;
