-- Pictures of an item (poster, tiles) are outputs like segments, made by a task of their own.
ALTER TABLE orchestrator.task DROP CONSTRAINT task_kind_check;
ALTER TABLE orchestrator.task ADD CONSTRAINT task_kind_check
    CHECK (kind IN ('probe', 'chunk', 'move', 'images'));
