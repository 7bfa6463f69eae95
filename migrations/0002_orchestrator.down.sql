DROP SCHEMA orchestrator CASCADE;
